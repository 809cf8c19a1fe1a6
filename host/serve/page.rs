//! The page at `/`: what this is and how it does, for a person with a browser. `Status -> HTML`; pure.
//!
//! Every value in it may be a stranger's (a plugin describes itself): all of it goes through [`Text`]. Its script
//! is the only one that its policy lets run; it fetches the same page again and puts its `main` in place.

use std::fmt::{self, Write};
use std::sync::LazyLock;

use base64::Engine;
use sha2::{Digest, Sha256};

use super::feed::StreamInfo;
use crate::model::Status;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#222;background:#fff}\
table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ddd;vertical-align:top;overflow-wrap:anywhere}\
.bad{color:#a00;font-weight:600}.mute{color:#666}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}th,td{border-color:#444}a{color:#8bf}.bad{color:#f77}.mute{color:#999}}";

const SCRIPT: &str = "setInterval(async()=>{if(document.hidden)return;try{const r=await fetch('/');if(!r.ok)throw r;\
const d=new DOMParser().parseFromString(await r.text(),'text/html');\
document.querySelector('main').replaceWith(d.querySelector('main'));document.title='Chainweir'}\
catch(e){document.title='Chainweir does not answer'}},2000)";

/// Nothing from anywhere else; of script and style, these two texts alone.
pub(super) fn policy() -> &'static str {
    static POLICY: LazyLock<String> = LazyLock::new(|| {
        let hash = |text: &str| base64::engine::general_purpose::STANDARD.encode(Sha256::digest(text));
        format!(
            "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            hash(SCRIPT),
            hash(STYLE)
        )
    });
    &POLICY
}

/// A text in HTML, in an element or in a quoted attribute.
struct Text<T>(T);

impl<T: fmt::Display> fmt::Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escape<'a, 'b>(&'a mut fmt::Formatter<'b>);
        impl Write for Escape<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                for c in text.chars() {
                    match c {
                        '<' => self.0.write_str("&lt;")?,
                        '>' => self.0.write_str("&gt;")?,
                        '&' => self.0.write_str("&amp;")?,
                        '"' => self.0.write_str("&quot;")?,
                        '\'' => self.0.write_str("&#39;")?,
                        c => self.0.write_char(c)?,
                    }
                }
                Ok(())
            }
        }
        write!(Escape(f), "{}", self.0)
    }
}

pub(super) fn render(status: &Status, streams: &[StreamInfo]) -> String {
    let mut html = String::with_capacity(8 << 10);
    page(&mut html, status, streams).expect("a text takes any text");
    html
}

fn page(html: &mut String, status: &Status, streams: &[StreamInfo]) -> fmt::Result {
    write!(
        html,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>Chainweir</title><style>{STYLE}</style><h1>Chainweir</h1>\
         <p>Follows EVM chains, runs plugins on their events, delivers what they emit. \
         <a href=/status>status</a> · <a href=/streams>streams</a> · <a href=/dead>dead letters</a> · \
         <a href=/metrics>metrics</a> · <a href=/healthz>healthz</a> · <a href=/readyz>readyz</a></p><main>"
    )?;
    let ready = if status.ready { "ready" } else { "<a class=bad href=/readyz>not ready</a>" };
    write!(html, "<p>version {}, {ready}, journal at {}", Text(&status.version), status.journal.last_offset)?;
    if let Some(why) = &status.journal.paused {
        write!(html, ", <span class=bad>nothing is taken in: {}</span>", Text(why))?;
    }
    html.push_str("</p><h2>Streams</h2><table><tr><th>Stream<th>Chains<th>Cursor<th>What it is");
    for s in streams {
        let (name, chains) = (Text(&s.name), Text(s.chains.join(", ")));
        let (cursor, about) = (Text(&s.cursor), Text(&s.description));
        write!(html, "<tr><td><a href=\"/streams/{name}\">{name}</a><td>{chains}<td>{cursor}<td>{about}")?;
    }
    html.push_str("</table><h2>Chains</h2><table><tr><th>Chain<th>Id<th>State<th>Head<th>Finalized<th>Reorgs");
    for c in &status.chains {
        write!(html, "<tr><td>{}<td>{}<td>", Text(&c.name), Text(&c.chain))?;
        state(html, &c.state, &["following", "ended"], c.why.as_deref())?;
        let number = |b: &Option<crate::model::BlockStatus>| b.as_ref().map_or("-".into(), |b| b.number.to_string());
        write!(html, "<td>{}<td>{}<td>{}", number(&c.head), number(&c.finalized), c.reorgs)?;
    }
    if status.chains.iter().any(|c| !c.providers.is_empty()) {
        html.push_str(
            "</table><h2>Providers</h2><table><tr><th>Provider<th>Chain<th>State<th>Head<th>Answers in<th>Requests<th>Errors<th>False",
        );
    }
    for (c, p) in status.chains.iter().flat_map(|c| c.providers.iter().map(move |p| (c, p))) {
        write!(html, "<tr><td>{}<td>{}<td>", Text(&p.name), Text(&c.name))?;
        state(html, &p.state, &["well", "limited"], p.why.as_deref())?;
        let head = p.head.map_or("-".into(), |head| head.to_string());
        let time = p.latency_ms.map_or("-".into(), |ms| format!("{ms:.0} ms"));
        write!(html, "<td>{head}<td>{time}<td>{}<td>{}<td>{}", p.requests, p.errors, p.false_answers)?;
    }
    html.push_str(
        "</table><h2>Plugins</h2><table><tr><th>Plugin<th>Chain<th>State<th>Block<th>Behind<th>Events<th>Emissions<th>Faults",
    );
    for p in &status.plugins {
        let (name, version, about) = (Text(&p.name), Text(&p.version), Text(&p.description));
        let rows = p.chains.len().max(1);
        write!(html, "<tr><td rowspan={rows}>{name} {version}<br><span class=mute>{about}</span>")?;
        if let Some(refused) = &p.refused {
            let (file, why) = (Text(&refused.file), Text(&refused.why));
            write!(html, "<br><span class=bad>{file} was not taken: {why}</span>")?;
        }
        for (i, at) in p.chains.iter().enumerate() {
            html.push_str(if i > 0 { "<tr><td>" } else { "<td>" });
            write!(html, "{}<td>", Text(&at.chain))?;
            state(html, &at.state, &["live", "catching-up"], at.why.as_deref())?;
            let block = at.cursor.as_ref().map_or("-".into(), |b| b.number.to_string());
            let lag = at.lag_blocks.map_or("-".into(), |l| l.to_string());
            write!(html, "<td>{block}<td>{lag}<td>{}<td>{}<td>{}", at.events, at.emissions, at.faults)?;
        }
    }
    for refused in status.refused_alone() {
        let (file, why) = (Text(&refused.file), Text(&refused.why));
        write!(html, "<tr><td>{file}<td colspan=7 class=bad>not running: {why}")?;
    }
    html.push_str(
        "</table><h2>Outputs</h2><table><tr><th>Output<th>Type<th>State<th>Waiting<th>Parked<th>Dead<th>Delivered",
    );
    for o in &status.outputs {
        write!(html, "<tr><td>{}<td>{}<td>", Text(&o.name), Text(&o.kind))?;
        state(html, &o.state, &["ok", "idle", "starting"], o.why.as_deref())?;
        write!(html, "<td>{}<td>{}<td>{}<td>{}", o.backlog, o.parked, o.dead, o.delivered)?;
    }
    write!(html, "</table></main><script>{SCRIPT}</script></html>")
}

fn state(html: &mut String, state: &str, good: &[&str], why: Option<&str>) -> fmt::Result {
    let class = if good.contains(&state) { "" } else { " class=bad" };
    write!(html, "<span{class}>{}</span>", Text(state))?;
    why.map_or(Ok(()), |why| write!(html, "<br>{}", Text(why)))
}

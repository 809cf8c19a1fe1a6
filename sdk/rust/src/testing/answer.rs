//! Reads what a plugin answered, as strictly as the host does.

use crate::verdict::ContentType;

/// What was said of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the layout")]
pub enum Verdict {
    Pass { event: u32, stream: u16 },
    Emit { event: u32, stream: u16, content_type: ContentType, lane_key: String, payload: Vec<u8> },
    Retry { event: u32, message: String },
    Reject { event: u32, message: String },
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*b.get(at..)?.first_chunk()?))
}
fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*b.get(at..)?.first_chunk()?))
}
fn part(b: &[u8], at: usize, len: u32) -> Option<&[u8]> {
    b.get(at..at.checked_add(len as usize)?)
}
fn text(b: &[u8]) -> Option<String> {
    String::from_utf8(b.to_vec()).ok()
}

/// Reads an answer to a batch of `events` records by a plugin with `streams` streams. `None` where it is malformed.
pub fn read(answer: &[u8], events: u32, streams: u16) -> Option<Vec<Verdict>> {
    let mut verdicts = Vec::new();
    if answer.is_empty() {
        return Some(verdicts);
    }
    let header_len = u16_at(answer, 4).map(usize::from).filter(|len| *len >= 16)?;
    if !answer.starts_with(b"CWV1") {
        return None;
    }
    let promised = u32_at(answer, 8)?;
    let mut rest = answer.get(header_len..)?;
    let mut records = 0;
    while !rest.is_empty() {
        let len = u32_at(rest, 0)? as usize;
        if len < 12 || !len.is_multiple_of(4) || len > rest.len() {
            return None;
        }
        let (record, after) = rest.split_at(len);
        rest = after;
        records += 1;
        let event = u32_at(record, 8).filter(|event| *event < events)?;
        let stream = || u16_at(record, 6).filter(|stream| *stream < streams);
        verdicts.push(match record[4] {
            1 => Verdict::Pass { event, stream: stream()? },
            2 => {
                let key_len = u32_at(record, 12)?;
                let payload = part(record, 20usize.checked_add(key_len as usize)?, u32_at(record, 16)?)?;
                let content_type = match record[5] {
                    0 => {
                        serde_json::from_slice::<serde::de::IgnoredAny>(payload).ok()?;
                        ContentType::Json
                    }
                    1 => {
                        text(payload)?;
                        ContentType::Text
                    }
                    2 => ContentType::Bytes,
                    _ => return None,
                };
                let lane_key = text(part(record, 20, key_len)?)?;
                Verdict::Emit { event, stream: stream()?, content_type, lane_key, payload: payload.to_vec() }
            }
            3 => {
                let message = text(part(record, 16, u32_at(record, 12)?)?)?;
                match record[5] {
                    1 => Verdict::Retry { event, message },
                    2 => Verdict::Reject { event, message },
                    _ => return None,
                }
            }
            _ => continue,
        });
    }
    (records == promised).then_some(verdicts)
}

//! `#[plugin]`: an `impl` block whose marked functions are handlers.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::parse::Parser;
use syn::spanned::Spanned;
use syn::{
    Attribute, Error, Expr, FnArg, Ident, ImplItem, ImplItemFn, ItemImpl, LitInt, LitStr, Meta, Result, Token, Type,
};

use crate::data::{check_name, docs};

#[derive(Default)]
struct Args {
    name: Option<LitStr>,
    description: Option<LitStr>,
    state_version: Option<LitInt>,
    streams: Vec<Type>,
}

impl Args {
    fn parse(tokens: TokenStream) -> Result<Self> {
        let mut args = Self::default();
        let parser = syn::meta::parser(|meta| {
            if meta.path.is_ident("name") {
                args.name = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("description") {
                args.description = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("state_version") {
                args.state_version = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("streams") {
                let content;
                syn::parenthesized!(content in meta.input);
                args.streams = content.parse_terminated(Type::parse, Token![,])?.into_iter().collect();
            } else {
                return Err(meta.error(
                    "a plugin has the options `name = \"...\"`, `description = \"...\"`, `state_version = N`, `streams(A, B)`",
                ));
            }
            Ok(())
        });
        parser.parse2(tokens)?;
        Ok(args)
    }
}

use syn::parse::Parse;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Block,
    Transaction,
    Log,
    Transfer,
    Creation,
    Pending,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Block, Self::Transaction, Self::Log, Self::Transfer, Self::Creation, Self::Pending];

    fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Transaction => "transaction",
            Self::Log => "log",
            Self::Transfer => "transfer",
            Self::Creation => "creation",
            Self::Pending => "pending",
        }
    }
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Block => &["pass", "subscribe"],
            Self::Transaction => &["pass", "subscribe", "senders", "receivers", "success", "min_value"],
            Self::Transfer | Self::Pending => &["pass", "subscribe", "senders", "receivers", "min_value"],
            Self::Creation => &["pass", "subscribe", "senders", "receivers"],
            Self::Log => &["pass", "subscribe", "addresses", "topic0", "topic1", "topic2", "topic3", "undecodable"],
        }
    }
}

/// A function marked as a handler.
struct Handler {
    kind: Kind,
    function: Ident,
    has_self: bool,
    options: Vec<(Ident, Expr)>,
    /// The event, and whether the handler takes `Decoded<Event>`.
    event: Option<(Type, bool)>,
    arguments: Vec<TokenStream>,
}

impl Handler {
    fn option(&self, name: &str) -> Option<&Expr> {
        self.options.iter().find(|(option, _)| option == name).map(|(_, value)| value)
    }

    fn text_option(&self, name: &str) -> Result<Option<LitStr>> {
        match self.option(name) {
            None => Ok(None),
            Some(Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. })) => Ok(Some(text.clone())),
            Some(other) => Err(Error::new(other.span(), format!("`{name}` is a text in quotes"))),
        }
    }
}

fn kind_of(attr: &Attribute) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| attr.path().is_ident(kind.name()))
}

fn read_options(kind: Kind, attr: &Attribute) -> Result<Vec<(Ident, Expr)>> {
    let mut options: Vec<(Ident, Expr)> = Vec::new();
    if let Meta::Path(_) = attr.meta {
        return Ok(options);
    }
    attr.parse_nested_meta(|meta| {
        let allowed = kind.options();
        let name = meta.path.get_ident().filter(|name| allowed.iter().any(|option| *name == option)).cloned();
        let Some(name) = name else {
            return Err(meta.error(format!("#[{}] has the options {}", kind.name(), allowed.join(", "))));
        };
        if options.iter().any(|(other, _)| *other == name) {
            return Err(meta.error(format!("`{name}` stands there twice")));
        }
        options.push((name, meta.value()?.parse()?));
        Ok(())
    })?;
    if options.iter().any(|(name, _)| name == "subscribe")
        && let Some((other, _)) =
            options.iter().find(|(name, _)| !["pass", "subscribe", "undecodable"].contains(&&*name.to_string()))
    {
        return Err(Error::new(
            other.span(),
            format!("`subscribe` says all of it: `{other}` has no meaning beside it"),
        ));
    }
    Ok(options)
}

fn last_segment(ty: &Type) -> Option<&syn::PathSegment> {
    match ty {
        Type::Path(path) => path.path.segments.last(),
        Type::Group(group) => last_segment(&group.elem),
        Type::Paren(paren) => last_segment(&paren.elem),
        _ => None,
    }
}

fn read_handler(kind: Kind, options: Vec<(Ident, Expr)>, function: &ImplItemFn) -> Result<Handler> {
    let signature = &function.sig;
    if let Some(asyncness) = signature.asyncness {
        return Err(Error::new(
            asyncness.span,
            "a handler is not async: there is nothing to wait for inside of a plugin",
        ));
    }
    if !signature.generics.params.is_empty() {
        return Err(Error::new(signature.generics.span(), "a handler has no parameters of its own"));
    }
    let mut handler = Handler {
        kind,
        function: signature.ident.clone(),
        has_self: false,
        options,
        event: None,
        arguments: Vec::new(),
    };
    for input in &signature.inputs {
        match input {
            FnArg::Receiver(receiver) => {
                if receiver.reference.is_none() || receiver.mutability.is_some() {
                    return Err(Error::new(
                        receiver.span(),
                        "a handler takes `&self`, the configuration: what changes from event to event lives in `state`, where it is rolled back with the chain",
                    ));
                }
                handler.has_self = true;
            }
            FnArg::Typed(typed) => {
                let argument = read_argument(&mut handler, &typed.ty)?;
                handler.arguments.push(argument);
            }
        }
    }
    Ok(handler)
}

fn read_argument(handler: &mut Handler, ty: &Type) -> Result<TokenStream> {
    let kind = handler.kind;
    let help = match kind {
        Kind::Log => {
            "a #[log] handler takes an event of sol! by value, and any of &LogView, &BlockView, &mut Out<Self>"
        }
        Kind::Transaction => "a #[transaction] handler takes any of &TransactionView, &BlockView, &mut Out<Self>",
        Kind::Pending => "a #[pending] handler takes any of &TransactionView, &BlockView, &mut Out<Self>",
        Kind::Transfer => "a #[transfer] handler takes any of &TransferView, &BlockView, &mut Out<Self>",
        Kind::Creation => "a #[creation] handler takes any of &TransferView, &BlockView, &mut Out<Self>",
        Kind::Block => "a #[block] handler takes any of &BlockView, &mut Out<Self>",
    };
    let wrong = || Error::new(ty.span(), help);
    if let Type::Reference(reference) = ty {
        let segment = last_segment(&reference.elem).ok_or_else(wrong)?;
        let mutable = reference.mutability.is_some();
        return match (&*segment.ident.to_string(), kind, mutable) {
            ("Out", _, true) => Ok(quote!(out)),
            ("Out", _, false) => Err(Error::new(ty.span(), "to emit, a handler takes `&mut Out<Self>`")),
            ("BlockView", Kind::Block, false) => Ok(quote!(block)),
            ("BlockView", Kind::Transaction | Kind::Pending, false) => Ok(quote!(&tx.block())),
            ("BlockView", Kind::Log, false) => Ok(quote!(&log.block())),
            ("BlockView", Kind::Transfer | Kind::Creation, false) => Ok(quote!(&transfer.block())),
            ("TransferView", Kind::Transfer | Kind::Creation, false) => Ok(quote!(transfer)),
            ("LogView", Kind::Log, false) => Ok(quote!(log)),
            ("TransactionView", Kind::Transaction | Kind::Pending, false) => Ok(quote!(tx)),
            ("TransactionView", Kind::Log, false) => Err(Error::new(
                ty.span(),
                "a log names its transaction by log.tx_hash() and log.tx_index(); the transaction itself reaches #[transaction] handlers",
            )),
            _ => Err(wrong()),
        };
    }
    let segment = last_segment(ty).ok_or_else(wrong)?;
    if ["Out", "BlockView", "LogView", "TransactionView", "TransferView"].contains(&&*segment.ident.to_string()) {
        let by = if segment.ident == "Out" { "&mut Out<Self>" } else { "by reference: &" };
        return Err(Error::new(
            ty.span(),
            format!(
                "a handler takes it {by}{}",
                if segment.ident == "Out" { String::new() } else { segment.ident.to_string() }
            ),
        ));
    }
    if kind != Kind::Log {
        return Err(wrong());
    }
    if handler.event.is_some() {
        return Err(Error::new(ty.span(), "a handler takes one event: write one handler for each"));
    }
    let raw = segment.ident == "Decoded";
    let event = if raw {
        match &segment.arguments {
            syn::PathArguments::AngleBracketed(arguments) => match arguments.args.first() {
                Some(syn::GenericArgument::Type(event)) => event.clone(),
                _ => return Err(Error::new(ty.span(), "which event? write Decoded<Transfer>")),
            },
            _ => return Err(Error::new(ty.span(), "which event? write Decoded<Transfer>")),
        }
    } else {
        ty.clone()
    };
    handler.event = Some((event, raw));
    Ok(quote!(event))
}

pub fn expand(args: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let args = Args::parse(args)?;
    let mut block: ItemImpl = syn::parse2(item.clone()).map_err(|_| {
        Error::new(
            item.span(),
            "#[plugin] goes on an impl block: `#[plugin] impl Whale { ... }`, with #[config] on `struct Whale`",
        )
    })?;
    if let Some((_, path, _)) = &block.trait_ {
        return Err(Error::new(path.span(), "#[plugin] goes on an impl block without a trait"));
    }
    let mut handlers = Vec::new();
    let mut init: Option<TokenStream> = None;
    for item in &mut block.items {
        let ImplItem::Fn(function) = item else { continue };
        let mut mark = None;
        let mut others = Vec::new();
        for attr in std::mem::take(&mut function.attrs) {
            if attr.path().is_ident("init") {
                let name = &function.sig.ident;
                if init.replace(quote!(__p::Handled::handled(self.#name()))).is_some() {
                    return Err(Error::new(attr.span(), "there is another #[init]"));
                }
            } else if let Some(kind) = kind_of(&attr) {
                if mark.is_some() {
                    return Err(Error::new(
                        attr.span(),
                        "a function handles one kind of event: write one for each, and let them call a third",
                    ));
                }
                mark = Some((kind, read_options(kind, &attr)?));
            } else {
                others.push(attr);
            }
        }
        function.attrs = others;
        if let Some((kind, options)) = mark {
            handlers.push(read_handler(kind, options, function)?);
        }
    }
    if handlers.is_empty() {
        return Err(Error::new(
            block.self_ty.span(),
            "a plugin has at least one handler: mark a function with #[log], #[transaction], #[transfer], #[creation], #[pending] or #[block]",
        ));
    }

    // Streams: the typed ones as listed, then those that events pass to.
    let mut passes: Vec<LitStr> = Vec::new();
    for handler in &handlers {
        if let Some(stream) = handler.text_option("pass")?
            && !passes.iter().any(|other| other.value() == stream.value())
        {
            check_name(&stream.value(), stream.span())?;
            passes.push(stream);
        }
    }
    let streams = &args.streams;
    let self_ty = &block.self_ty;
    let emits = streams.iter().enumerate().map(|(i, stream)| {
        let i = i as u16;
        quote_spanned!(stream.span()=> impl __p::Emits<#stream> for #self_ty { const INDEX: u16 = #i; })
    });
    let pass_index = |name: &LitStr| {
        let place = passes.iter().position(|other| other.value() == name.value()).unwrap_or_default();
        (streams.len() + place) as u16
    };

    let mut wanted = Vec::new();
    let mut calls: [Vec<TokenStream>; 6] = Default::default();
    for (i, handler) in handlers.iter().enumerate() {
        wanted.push(wants(handler)?);
        let call = call(handler, i, handler.text_option("pass")?.as_ref().map(pass_index))?;
        calls[handler.kind as usize].push(call);
    }
    let [on_block, on_transaction, on_log, on_transfer, on_creation, on_pending] = calls;

    let name = match &args.name {
        Some(name) => {
            check_name(&name.value(), name.span())?;
            quote!(#name)
        }
        None => quote!(env!("CARGO_PKG_NAME")),
    };
    let doc = docs(&block.attrs);
    let description = match &args.description {
        Some(text) => quote!(#text),
        None if !doc.is_empty() => quote!(#doc),
        None => quote!(env!("CARGO_PKG_DESCRIPTION")),
    };
    let state_version = args.state_version.map_or(quote!(1), |version| quote!(#version));
    let init = init.unwrap_or(quote!(::core::result::Result::Ok(())));

    Ok(quote! {
        #block
        const _: () = {
            use ::chainweir_sdk::__private as __p;
            use ::chainweir_sdk::batch::{BlockView as __BlockView, LogView as __LogView, TransactionView as __TransactionView, TransferView as __TransferView};
            use ::chainweir_sdk::subscription::Subscription as __Subscription;
            use ::std::{vec, vec::Vec};
            #(#emits)*
            const NAMES: &[&str] = &[#(<#streams as __p::Stream>::NAME,)* #(#passes,)*];
            const _: () = assert!(__p::are_streams(NAMES), "two streams of the plugin have the same name");
            const _: () = assert!(__p::is_name(#name), "the crate's name is no plugin name: give one with #[plugin(name = ...)]");
            #[allow(unused_variables, clippy::needless_pass_by_ref_mut, clippy::all)]
            impl __p::Plugin for #self_ty {
                const NAME: &'static str = #name;
                const VERSION: &'static str = env!("CARGO_PKG_VERSION");
                const DESCRIPTION: &'static str = #description;
                const STATE_VERSION: u32 = #state_version;
                fn streams() -> Vec<__p::StreamSpec> {
                    vec![
                        #(__p::spec_of::<#streams>(),)*
                        #(__p::StreamSpec {
                            name: #passes.into(),
                            description: "Events as they are".into(),
                            schema: ::std::string::String::new(),
                        },)*
                    ]
                }
                fn init(&mut self) -> ::chainweir_sdk::Result { #init }
                fn handlers(&self) -> Vec<(__p::EventKind, Vec<__Subscription>)> { vec![#(#wanted),*] }
                #[inline]
                fn on_block(&self, block: &__BlockView<'_>, out: &mut ::chainweir_sdk::plugin::Out<Self>) -> ::chainweir_sdk::Result {
                    #(#on_block)*
                    ::core::result::Result::Ok(())
                }
                #[inline]
                fn on_transaction(&self, filters: &__p::Filters, tx: &__TransactionView<'_>, out: &mut ::chainweir_sdk::plugin::Out<Self>) -> ::chainweir_sdk::Result {
                    #(#on_transaction)*
                    ::core::result::Result::Ok(())
                }
                #[inline]
                fn on_pending(&self, filters: &__p::Filters, tx: &__TransactionView<'_>, out: &mut ::chainweir_sdk::plugin::Out<Self>) -> ::chainweir_sdk::Result {
                    #(#on_pending)*
                    ::core::result::Result::Ok(())
                }
                #[inline]
                fn on_transfer(&self, filters: &__p::Filters, transfer: &__TransferView<'_>, out: &mut ::chainweir_sdk::plugin::Out<Self>) -> ::chainweir_sdk::Result {
                    if !transfer.value().is_zero() { #(#on_transfer)* }
                    if transfer.creates() { #(#on_creation)* }
                    ::core::result::Result::Ok(())
                }
                #[inline]
                fn on_log(&self, filters: &__p::Filters, log: &__LogView<'_>, out: &mut ::chainweir_sdk::plugin::Out<Self>) -> ::chainweir_sdk::Result {
                    #(#on_log)*
                    ::core::result::Result::Ok(())
                }
            }
            #[cfg(target_arch = "wasm32")]
            __p::export_plugin!(#self_ty);
        };
    })
}

/// What the handler asks for: an entry of `Plugin::handlers`.
fn wants(handler: &Handler) -> Result<TokenStream> {
    let kind = match handler.kind {
        Kind::Block => quote!(__p::EventKind::Block),
        Kind::Transaction => quote!(__p::EventKind::Transaction),
        Kind::Log => quote!(__p::EventKind::Log),
        Kind::Transfer => quote!(__p::EventKind::Transfer),
        Kind::Creation => quote!(__p::EventKind::Creation),
        Kind::Pending => quote!(__p::EventKind::Pending),
    };
    if let Some(subscribe) = handler.option("subscribe") {
        return Ok(quote!((#kind, ::core::iter::IntoIterator::into_iter(#subscribe).collect::<Vec<__Subscription>>())));
    }
    let mut one = match (handler.kind, &handler.event) {
        (Kind::Block, _) => quote!(__Subscription::blocks()),
        (Kind::Transaction, _) => quote!(__Subscription::transactions()),
        (Kind::Transfer, _) => quote!(__Subscription::transfers()),
        (Kind::Creation, _) => quote!(__Subscription::creations()),
        (Kind::Pending, _) => quote!(__Subscription::pending()),
        (Kind::Log, None) => quote!(__Subscription::logs()),
        (Kind::Log, Some((event, _))) => quote_spanned!(event.span()=> __Subscription::event::<#event>()),
    };
    for (option, value) in &handler.options {
        let name = option.to_string();
        one = match &*name {
            "addresses" | "senders" | "receivers" => quote_spanned!(value.span()=> #one.#option(&(#value))),
            "success" => quote_spanned!(value.span()=> #one.success(#value)),
            "min_value" => quote_spanned!(value.span()=> #one.min_value(#value)),
            "topic0" if handler.event.is_some() => {
                return Err(Error::new(
                    option.span(),
                    "topic 0 is the event's, and the handler already names its event",
                ));
            }
            topic => match topic.strip_prefix("topic") {
                Some(place) => {
                    let place: usize = place.parse().expect("topic0 to topic3, as checked when read");
                    quote_spanned!(value.span()=> #one.topic(#place, &(#value)))
                }
                None => continue,
            },
        };
    }
    Ok(quote!((#kind, vec![#one])))
}

/// The statement that hands an event to the handler.
fn call(handler: &Handler, i: usize, pass: Option<u16>) -> Result<TokenStream> {
    let function = &handler.function;
    let arguments = &handler.arguments;
    let call = if handler.has_self {
        quote!(self.#function(#(#arguments),*))
    } else {
        quote!(Self::#function(#(#arguments),*))
    };
    let run = match pass {
        Some(stream) => quote_spanned!(function.span()=> if __p::Passes::passes(#call)? { out.pass_to(#stream); }),
        None => quote_spanned!(function.span()=> __p::Handled::handled(#call)?;),
    };
    let undecodable = handler.text_option("undecodable")?;
    let reject = match &undecodable {
        None => false,
        Some(_) if !matches!(handler.event, Some((_, false))) => {
            return Err(Error::new(
                handler.function.span(),
                "`undecodable` is for handlers that take an event of sol! by value",
            ));
        }
        Some(text) => match &*text.value() {
            "reject" => true,
            "skip" => false,
            _ => return Err(Error::new(text.span(), "`undecodable` is \"skip\" or \"reject\"")),
        },
    };
    Ok(match handler.kind {
        Kind::Block => run,
        Kind::Transaction => quote!(if filters.transaction(#i, tx) { #run }),
        Kind::Pending => quote!(if filters.pending(#i, tx) { #run }),
        Kind::Transfer | Kind::Creation => quote!(if filters.transfer(#i, transfer) { #run }),
        Kind::Log => match &handler.event {
            None => quote!(if filters.log(#i, log) { #run }),
            Some((event, raw)) => {
                let decoded = if *raw {
                    quote!({ let event = log.decode::<#event>(); #run })
                } else if reject {
                    quote!({ let event = log.decode::<#event>()?; #run })
                } else {
                    quote!(if let ::core::result::Result::Ok(event) = log.decode::<#event>() { #run })
                };
                quote!(if log.is::<#event>() && filters.log(#i, log) { #decoded })
            }
        },
    })
}

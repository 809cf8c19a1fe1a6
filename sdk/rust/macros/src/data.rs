//! `#[stream]`, `#[config]` and `#[json]`: structs that become JSON, or come from it.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote};
use syn::parse::Parser;
use syn::spanned::Spanned;
use syn::{Attribute, Data, DeriveInput, Error, Expr, Field, Fields, Ident, Lit, Meta, Result, Type, parse_quote};

/// The text of the doc comment.
pub fn docs(attrs: &[Attribute]) -> String {
    let mut lines = Vec::new();
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("doc")) {
        if let Meta::NameValue(meta) = &attr.meta
            && let Expr::Lit(literal) = &meta.value
            && let Lit::Str(text) = &literal.lit
        {
            lines.push(text.value().trim().to_owned());
        }
    }
    lines.join(" ").trim().to_owned()
}

/// Does the type mention a value that JSON has no own form for?
fn is_of_the_chain(ty: &Type) -> bool {
    use syn::{GenericArgument, PathArguments};
    match ty {
        Type::Path(path) => path.path.segments.iter().any(|segment| {
            let inner = match &segment.arguments {
                PathArguments::AngleBracketed(arguments) => {
                    arguments.args.iter().any(|a| matches!(a, GenericArgument::Type(ty) if is_of_the_chain(ty)))
                }
                _ => false,
            };
            inner || is_chain_name(&segment.ident.to_string())
        }),
        Type::Reference(reference) => is_of_the_chain(&reference.elem),
        Type::Array(array) => is_of_the_chain(&array.elem),
        Type::Slice(slice) => is_of_the_chain(&slice.elem),
        Type::Tuple(tuple) => tuple.elems.iter().any(is_of_the_chain),
        Type::Paren(paren) => is_of_the_chain(&paren.elem),
        Type::Group(group) => is_of_the_chain(&group.elem),
        _ => false,
    }
}

fn is_chain_name(name: &str) -> bool {
    let sized = |prefixes: &[char]| {
        name.strip_prefix(prefixes).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    sized(&['U', 'I', 'B'])
        || matches!(
            name,
            "u128"
                | "i128"
                | "Uint"
                | "Signed"
                | "Address"
                | "FixedBytes"
                | "Bytes"
                | "TxHash"
                | "BlockHash"
                | "Selector"
        )
}

/// Which directions a type is for.
#[derive(Clone, Copy)]
struct Ways {
    write: bool,
    read: bool,
}

fn each_field(data: &mut Data, mut f: impl FnMut(&mut Field) -> Result<()>) -> Result<()> {
    match data {
        Data::Struct(data) => data.fields.iter_mut().try_for_each(f),
        Data::Enum(data) => data.variants.iter_mut().flat_map(|v| v.fields.iter_mut()).try_for_each(&mut f),
        Data::Union(data) => Err(Error::new(data.union_token.span, "a union has no JSON form")),
    }
}

/// Derives with the paths of the SDK, so that an author's crate has one dependency.
fn derive(input: &mut DeriveInput, ways: Ways) -> Result<()> {
    each_field(&mut input.data, |field| {
        if is_of_the_chain(&field.ty) {
            let ty = &field.ty;
            if ways.write {
                let schema = quote!(::chainweir_sdk::json::SchemaOf<#ty>).to_string();
                field.attrs.push(parse_quote!(#[serde(serialize_with = "::chainweir_sdk::json::serialize")]));
                field.attrs.push(parse_quote!(#[schemars(with = #schema)]));
            }
            if ways.read {
                field.attrs.push(parse_quote!(#[serde(deserialize_with = "::chainweir_sdk::json::deserialize")]));
                let is_option =
                    matches!(ty, Type::Path(p) if p.path.segments.last().is_some_and(|s| s.ident == "Option"));
                let has_default = field
                    .attrs
                    .iter()
                    .any(|a| a.path().is_ident("serde") && quote!(#a).to_string().contains("default"));
                if is_option && !has_default {
                    // serde takes an absent `Option` for `None` only where it reads the field itself.
                    field.attrs.push(parse_quote!(#[serde(default)]));
                }
                if ways.write && (is_option || has_default) {
                    // schemars would write the default into the schema, through a crate that the author may not have.
                    field.attrs.push(parse_quote!(#[schemars(!default)]));
                }
            }
        }
        Ok(())
    })?;
    if ways.write {
        // First of all: an author's own #[serde(...)] must not stand before the derive that it belongs to.
        input.attrs.insert(
            0,
            parse_quote!(#[derive(::chainweir_sdk::serde::Serialize, ::chainweir_sdk::schemars::JsonSchema)]),
        );
        input.attrs.push(parse_quote!(#[schemars(crate = "::chainweir_sdk::schemars")]));
    }
    if ways.read {
        input.attrs.insert(0, parse_quote!(#[derive(::chainweir_sdk::serde::Deserialize)]));
    }
    input.attrs.push(parse_quote!(#[serde(crate = "::chainweir_sdk::serde")]));
    Ok(())
}

fn kebab(name: &str) -> String {
    let mut out = String::new();
    for (i, c) in name.char_indices() {
        if c.is_ascii_uppercase() {
            if i > 0 {
                out.push('-');
            }
            out.push(c.to_ascii_lowercase());
        } else {
            out.push(if c == '_' { '-' } else { c });
        }
    }
    out
}

#[derive(PartialEq)]
enum Content {
    Json,
    Text,
    Bytes,
    Pass,
}

pub fn stream(args: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let mut input: DeriveInput = syn::parse2(item)?;
    let mut name = None;
    let mut key: Option<syn::punctuated::Punctuated<Ident, syn::Token![.]>> = None;
    let mut content = Content::Json;
    let parser = syn::meta::parser(|meta| {
        if meta.path.is_ident("name") {
            name = Some(meta.value()?.parse::<syn::LitStr>()?);
        } else if meta.path.is_ident("key") {
            key = Some(syn::punctuated::Punctuated::parse_separated_nonempty(meta.value()?)?);
        } else if meta.path.is_ident("text") {
            content = Content::Text;
        } else if meta.path.is_ident("bytes") {
            content = Content::Bytes;
        } else if meta.path.is_ident("pass") {
            content = Content::Pass;
        } else {
            return Err(meta.error("a stream has the options `name = \"...\"`, `key = field`, `text`, `bytes`, `pass`"));
        }
        Ok(())
    });
    parser.parse2(args)?;

    let Data::Struct(data) = &input.data else {
        return Err(Error::new(
            input.ident.span(),
            "#[stream] goes on a struct; put an enum into a field, with #[json] on it",
        ));
    };
    if let Some(first) = key.as_ref().and_then(|key| key.first())
        && !data.fields.iter().any(|field| field.ident.as_ref() == Some(first))
    {
        return Err(Error::new(first.span(), format!("`{}` has no field `{first}`", input.ident)));
    }
    let one_unnamed = matches!(&data.fields, Fields::Unnamed(fields) if fields.unnamed.len() == 1);
    match content {
        Content::Text | Content::Bytes if !one_unnamed => {
            return Err(Error::new(
                input.ident.span(),
                "a stream of text or bytes is a struct with one unnamed field: `struct Note(String);`",
            ));
        }
        Content::Pass if !matches!(data.fields, Fields::Unit) => {
            return Err(Error::new(
                input.ident.span(),
                "where events pass as they are there is no payload: `struct Matched;`",
            ));
        }
        Content::Json if matches!(data.fields, Fields::Unit) => {
            return Err(Error::new(
                input.ident.span(),
                "a payload has fields; to let events pass as they are, write #[stream(pass)]",
            ));
        }
        _ => {}
    }

    let (name, span) = match &name {
        Some(name) => (name.value(), name.span()),
        None => (kebab(&input.ident.to_string()), input.ident.span()),
    };
    check_name(&name, span)?;
    let description = docs(&input.attrs);
    if content == Content::Json {
        derive(&mut input, Ways { write: true, read: false })?;
    }
    let ident = &input.ident;
    let (impls, types, wheres) = input.generics.split_for_impl();
    let content_type = match content {
        Content::Json => quote!(::core::option::Option::Some(__p::ContentType::Json)),
        Content::Text => quote!(::core::option::Option::Some(__p::ContentType::Text)),
        Content::Bytes => quote!(::core::option::Option::Some(__p::ContentType::Bytes)),
        Content::Pass => quote!(::core::option::Option::None),
    };
    let (schema, write) = match content {
        Content::Json => (
            quote!(__p::schema_of::<Self>()),
            quote! {
                ::chainweir_sdk::serde_json::to_writer(out, self).map_err(::chainweir_sdk::Error::from)
            },
        ),
        Content::Text => (
            quote!(::std::string::String::new()),
            quote!({
                out.extend_from_slice(::core::convert::AsRef::<str>::as_ref(&self.0).as_bytes());
                ::core::result::Result::Ok(())
            }),
        ),
        Content::Bytes => (
            quote!(::std::string::String::new()),
            quote!({
                out.extend_from_slice(::core::convert::AsRef::<[u8]>::as_ref(&self.0));
                ::core::result::Result::Ok(())
            }),
        ),
        Content::Pass => (
            quote!(::std::string::String::new()),
            quote!({
                let _ = out;
                ::core::result::Result::Ok(())
            }),
        ),
    };
    let lane_key = key.map(|field| {
        quote! {
            fn lane_key(&self) -> ::core::option::Option<::std::string::String> {
                ::core::option::Option::Some(::chainweir_sdk::json::key_text(&self.#field))
            }
        }
    });
    Ok(quote! {
        #input
        const _: () = {
            use ::chainweir_sdk::__private as __p;
            impl #impls __p::Stream for #ident #types #wheres {
                const NAME: &'static str = #name;
                const DESCRIPTION: &'static str = #description;
                const CONTENT: ::core::option::Option<__p::ContentType> = #content_type;
                fn schema() -> ::std::string::String { #schema }
                fn write(&self, out: &mut ::std::vec::Vec<u8>) -> ::chainweir_sdk::Result { #write }
                #lane_key
            }
        };
    })
}

pub fn check_name(name: &str, span: Span) -> Result<()> {
    let good = name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
    if good {
        return Ok(());
    }
    let what = format!(
        "'{name}' is not a name: use at most 64 lower-case letters, digits, '-' and '_', beginning with a letter"
    );
    Err(Error::new(span, what))
}

pub fn config(args: TokenStream, item: TokenStream) -> Result<TokenStream> {
    if !args.is_empty() {
        return Err(Error::new(
            args.span(),
            "#[config] has no options; put #[default(value)] on a field that may be left out",
        ));
    }
    let mut input: DeriveInput = syn::parse2(item)?;
    let ident = input.ident.clone();
    let Data::Struct(data) = &mut input.data else {
        return Err(Error::new(
            ident.span(),
            "#[config] goes on a struct; put an enum into a field, with #[json] on it",
        ));
    };
    if matches!(data.fields, Fields::Unnamed(_)) {
        return Err(Error::new(
            ident.span(),
            "the fields of a configuration need names: they are the keys of its table",
        ));
    }
    if !input.generics.params.is_empty() {
        return Err(Error::new(input.generics.span(), "a configuration outlives every call: it has no parameters"));
    }
    if matches!(data.fields, Fields::Unit) {
        // `struct Whale;` has no keys; serde would read it from `null`.
        return Ok(quote! {
            #input
            impl ::chainweir_sdk::__private::Configured for #ident {
                fn from_config(json: &str) -> ::core::result::Result<Self, ::std::string::String> {
                    #[derive(::chainweir_sdk::serde::Deserialize)]
                    #[serde(crate = "::chainweir_sdk::serde", deny_unknown_fields)]
                    struct NoKeys {}
                    ::chainweir_sdk::__private::read_config::<NoKeys>(json).map(|NoKeys {}| Self)
                }
            }
        });
    }
    let mut defaults = TokenStream::new();
    for field in &mut data.fields {
        let name = field.ident.clone().expect("named, as checked above");
        let attrs = std::mem::take(&mut field.attrs);
        for attr in attrs {
            if attr.path().is_ident("internal") {
                field.attrs.push(parse_quote!(#[serde(skip)]));
            } else if attr.path().is_ident("default") {
                match &attr.meta {
                    Meta::Path(_) => field.attrs.push(parse_quote!(#[serde(default)])),
                    Meta::List(list) => {
                        let value: Expr = syn::parse2(list.tokens.clone())?;
                        let ty = &field.ty;
                        let function = format_ident!("default_of_{}", name);
                        let path = format!("{ident}::{function}");
                        field.attrs.push(parse_quote!(#[serde(default = #path)]));
                        defaults.extend(quote!(fn #function() -> #ty { #value }));
                    }
                    Meta::NameValue(_) => {
                        return Err(Error::new(
                            attr.span(),
                            "write #[default(value)], or #[default] for the type's own",
                        ));
                    }
                }
            } else {
                field.attrs.push(attr);
            }
        }
    }
    let skipped = |field: &Field| {
        field.attrs.iter().any(|a| a.path().is_ident("serde") && quote!(#a).to_string().contains("skip"))
    };
    // A skipped field is not read, so nothing is put on it: derive() looks at types only.
    let mut aside = Vec::new();
    for (i, field) in data.fields.iter_mut().enumerate() {
        if skipped(field) {
            aside.push((i, std::mem::replace(&mut field.ty, parse_quote!(()))));
        }
    }
    derive(&mut input, Ways { write: false, read: true })?;
    if let Data::Struct(data) = &mut input.data {
        for (i, ty) in aside {
            if let Some(field) = data.fields.iter_mut().nth(i) {
                field.ty = ty;
            }
        }
    }
    input.attrs.push(parse_quote!(#[serde(deny_unknown_fields)]));
    let defaults =
        (!defaults.is_empty()).then(|| quote!(#[doc(hidden)] #[allow(clippy::all)] impl #ident { #defaults }));
    Ok(quote! {
        #input
        #defaults
        impl ::chainweir_sdk::__private::Configured for #ident {
            fn from_config(json: &str) -> ::core::result::Result<Self, ::std::string::String> {
                ::chainweir_sdk::__private::read_config(json)
            }
        }
    })
}

pub fn json(args: TokenStream, item: TokenStream) -> Result<TokenStream> {
    if !args.is_empty() {
        return Err(Error::new(args.span(), "#[json] has no options"));
    }
    let mut input: DeriveInput = syn::parse2(item)?;
    if !input.generics.params.is_empty() {
        return Err(Error::new(input.generics.span(), "#[json] goes on types without parameters"));
    }
    derive(&mut input, Ways { write: true, read: true })?;
    let ident = &input.ident;
    Ok(quote! {
        #input
        const _: () = {
            use ::chainweir_sdk::{json, schemars, serde};
            impl json::ToJson for #ident {
                fn to_json<S: serde::Serializer>(&self, serializer: S) -> ::core::result::Result<S::Ok, S::Error> {
                    serde::Serialize::serialize(self, serializer)
                }
                fn schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                    <Self as schemars::JsonSchema>::json_schema(generator)
                }
            }
            impl json::FromJson for #ident {
                fn from_json<'de, D: serde::Deserializer<'de>>(deserializer: D) -> ::core::result::Result<Self, D::Error> {
                    serde::Deserialize::deserialize(deserializer)
                }
            }
        };
    })
}

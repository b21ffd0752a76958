//! `lapis explain`: what an error's code means and what usually helps. One code a kind of error, so that no error is without.

use lapis::{Error, ErrorKind, Result};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A code, such as E0301; without one, all are listed
    code: Option<String>,
}

/// A kind of error.
struct Page {
    kind: ErrorKind,
    code: &'static str,
    title: &'static str,
    /// The exit code.
    exit: u8,
    text: &'static str,
}

macro_rules! pages {
    ($($kind:ident $code:ident $exit:literal $title:literal $text:literal)*) => {
        &[$(Page { kind: ErrorKind::$kind, code: stringify!($code), exit: $exit, title: $title, text: $text }),*]
    };
}

const PAGES: &[Page] = pages! {
    Shape E0101 2 "shapes that do not fit together"
    "Sizes of arrays, or of a model's tensors, contradict each other. The message names the operation and both shapes. \
     With a model, its config.json belongs to other weights: fetch both from one place (lapis pull --verify)."
    Dtype E0102 2 "an element type that is not taken"
    "An operation got elements of a type it is not defined for; the message names both. Cast first, or convert the \
     model (lapis convert --dtype)."
    Axis E0103 2 "an axis that is out of range or named twice"
    "An array has fewer dimensions than were counted on. The message names the axis and the shape."
    Index E0104 2 "an index outside its axis"
    "Often a token that the model does not know: a tokenizer of another model, or --logit-bias with a wrong id."
    Overflow E0105 2 "a size beyond 64 bits"
    "Dimensions multiply to more than any machine has. With a file, it is damaged."
    Value E0201 2 "an argument out of range"
    "A flag, a variable LAPIS_..., a key of lapis.toml or of a model's config has a value that is not possible. The message \
     names it and says what is. `lapis config show --origin` says where a setting comes from."
    Unsupported E0202 2 "valid, but not built"
    "The file or request is fine and lapis cannot do it yet. The message names what. For packed weights of other tools, \
     an MLX conversion of the same model usually exists."
    Io E0301 2 "a file that is missing, malformed or cannot be written"
    "The message has the path, the place in the file, what was expected and what was found. A model directory has config.json, \
     tokenizer.json and safetensors files. Damaged downloads: lapis pull --verify NAME. Nothing half-written is left behind."
    Memory E0401 4 "memory or disk space exhausted"
    "More was needed than the limit (95 % of the machine's or the control group's memory) or than the disk has. `lapis fit NAME` \
     says what a model needs at which length of context. Ways out: a smaller --max-tokens or context, a model in fewer bits."
    Network E0501 5 "a host that cannot be reached or refuses"
    "The hub at HF_ENDPOINT (https://huggingface.co) was not reached, or it refused: a repository that does not exist, is private, or \
     is gated. Private and gated ones need HF_TOKEN; gated ones also that their licence is accepted on their page. Behind a proxy \
     set HTTPS_PROXY, and SSL_CERT_FILE where it has a certificate of its own. What was fetched is kept. --offline and \
     HF_HUB_OFFLINE=1 use the cache alone."
    Device E0601 1 "a device or stream that is not there"
    "lapis was built without a backend for the device that was asked for, or the machine lacks it. `lapis doctor` lists what there is."
    Eval E0701 3 "a fault found while computing"
    "Numbers came out that no answer can be made of: infinities, NaN, a singular matrix. With a model, its weights are damaged or its \
     type of numbers is too narrow; try --dtype float32 with lapis convert."
};

/// The code of an error.
pub(crate) fn code(kind: ErrorKind) -> &'static str {
    page(kind).map_or("E0000", |p| p.code)
}

/// The exit code of an error: 2 for what was asked, 3 for numbers, 4 for resources, 5 for the network, 1 for the rest.
pub(crate) fn exit(kind: ErrorKind) -> u8 {
    page(kind).map_or(1, |p| p.exit)
}

fn page(kind: ErrorKind) -> Option<&'static Page> {
    PAGES.iter().find(|p| p.kind == kind)
}

pub(crate) fn run(a: Arguments) -> Result<()> {
    let Some(code) = a.code else {
        PAGES.iter().for_each(|p| println!("{}  {}", p.code, p.title));
        return Ok(());
    };
    let Some(page) = PAGES.iter().find(|p| p.code.eq_ignore_ascii_case(code.trim())) else {
        let all: Vec<&str> = PAGES.iter().map(|p| p.code).collect();
        return Err(Error::value(format!("{code:?} is no code of an error; there are {}", all.join(", "))));
    };
    println!(
        "{}: {}\n\n{}\n\nThe program ends with exit code {}.",
        page.code,
        page.title,
        wrapped(page.text),
        page.exit
    );
    Ok(())
}

/// Lines of at most 80 columns.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("one at least");
        if !line.is_empty() && line.len() + 1 + word.len() > 80 {
            lines.push(word.to_string());
        } else {
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(word);
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_has_one_page() {
        use ErrorKind::*;
        let all = [Shape, Dtype, Axis, Index, Value, Overflow, Memory, Io, Network, Device, Unsupported, Eval];
        for kind in all {
            assert_eq!(PAGES.iter().filter(|p| p.kind == kind).count(), 1, "{kind:?}");
            assert_eq!(PAGES.iter().filter(|p| p.code == code(kind)).count(), 1, "{kind:?}");
        }
        assert_eq!(PAGES.len(), all.len());
    }
}

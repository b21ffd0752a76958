//! The model of a `tokenizer.json`: byte pairs by [`Bpe`], everything else by `tokenizers`.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::{
    DecoderWrapper, Model, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Result, Token,
    TokenizerImpl,
};

use super::bpe::{Bpe, Options, Pairs, Texts, Vocab};

/// A tokenizer with our model in it.
pub(super) type Inner =
    TokenizerImpl<AnyModel, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// The number of tokens, added ones included; `tokenizers`' own count copies the vocabulary.
pub(super) fn size(inner: &Inner) -> usize {
    let (model, added) = (inner.get_model(), inner.get_added_vocabulary().get_vocab());
    model.get_vocab_size() + added.keys().filter(|text| model.token_to_id(text).is_none()).count()
}

/// A model that turns words into tokens.
pub(super) enum AnyModel {
    /// Byte pairs without rare options.
    Bpe(Box<Bpe>),
    /// What `tokenizers` does.
    Other(Box<ModelWrapper>),
}

impl AnyModel {
    pub(super) fn is_bpe(&self) -> bool {
        matches!(self, AnyModel::Bpe(_))
            || matches!(self, AnyModel::Other(model) if matches!(**model, ModelWrapper::BPE(_)))
    }
}

impl Model for AnyModel {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, word: &str) -> Result<Vec<Token>> {
        match self {
            AnyModel::Bpe(model) => model.tokenize(word),
            AnyModel::Other(model) => model.tokenize(word),
        }
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            AnyModel::Bpe(model) => model.vocab.id(token),
            AnyModel::Other(model) => model.token_to_id(token),
        }
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        match self {
            AnyModel::Bpe(model) => model.vocab.token(id).map(str::to_owned),
            AnyModel::Other(model) => model.id_to_token(id),
        }
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        match self {
            AnyModel::Bpe(model) => model.vocab.iter().map(|(text, id)| (text.to_owned(), id)).collect(),
            AnyModel::Other(model) => model.get_vocab(),
        }
    }

    fn get_vocab_size(&self) -> usize {
        match self {
            AnyModel::Bpe(model) => model.vocab.len(),
            AnyModel::Other(model) => model.get_vocab_size(),
        }
    }

    fn save(&self, _: &Path, _: Option<&str>) -> Result<Vec<PathBuf>> {
        Err("a tokenizer is only read here".into())
    }

    fn get_trainer(&self) -> TrainerWrapper {
        ModelWrapper::BPE(tokenizers::models::bpe::BPE::default()).get_trainer()
    }
}

impl<'de> Deserialize<'de> for AnyModel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<AnyModel, D::Error> {
        deserializer.deserialize_map(ModelVisitor)
    }
}

struct ModelVisitor;

impl<'de> Visitor<'de> for ModelVisitor {
    type Value = AnyModel;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a tokenizer's model: an object with a vocabulary")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<AnyModel, M::Error> {
        let (mut vocab, mut merges, mut others) = (None, None, Map::new());
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "vocab" => match map.next_value()? {
                    AnyVocab::Texts(texts) => vocab = Some(texts),
                    AnyVocab::Other(value) => _ = others.insert(key, value),
                },
                "merges" => merges = map.next_value_seed(Merges)?,
                _ => _ = others.insert(key, map.next_value()?),
            }
        }
        let set = |name: &str| others.get(name).is_some_and(|v| !matches!(v, Value::Null) && *v != json!(""));
        let kind = others.get("type").and_then(Value::as_str);
        if kind.is_some_and(|kind| !["BPE", "WordPiece", "WordLevel", "Unigram"].contains(&kind)) {
            let known = "BPE, WordPiece, WordLevel and Unigram are known";
            return Err(M::Error::custom(format!("its model has the type {kind:?}; {known}")));
        }
        let rare = set("dropout") || set("continuing_subword_prefix") || set("end_of_word_suffix");
        match (vocab, merges) {
            (Some(vocab), Some(merges)) if !rare && matches!(kind, Some("BPE") | None) => {
                let flag = |name: &str| others.get(name).and_then(Value::as_bool).unwrap_or(false);
                let options = Options {
                    unknown: others.get("unk_token").and_then(Value::as_str).map(str::to_owned),
                    fuse_unknown: flag("fuse_unk"),
                    byte_fallback: flag("byte_fallback"),
                    ignore_merges: flag("ignore_merges"),
                };
                Bpe::new(vocab, &merges, options).map(|bpe| AnyModel::Bpe(Box::new(bpe))).map_err(M::Error::custom)
            }
            (vocab, merges) => {
                if let Some(vocab) = vocab {
                    if let Some(merges) = merges {
                        let pairs = merges.iter().map(|[first, second, _]| json!([first, second]));
                        others.insert("merges".into(), pairs.collect());
                    }
                    others
                        .insert("vocab".into(), vocab.iter().map(|(text, id)| (text.to_owned(), json!(id))).collect());
                }
                ModelWrapper::deserialize(Value::Object(others))
                    .map(|model| AnyModel::Other(Box::new(model)))
                    .map_err(M::Error::custom)
            }
        }
    }
}

/// A vocabulary as an object of texts with ids, or as another model has it.
enum AnyVocab {
    Texts(Vocab),
    Other(Value),
}

impl<'de> Deserialize<'de> for AnyVocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<AnyVocab, D::Error> {
        struct VocabVisitor;
        impl<'de> Visitor<'de> for VocabVisitor {
            type Value = AnyVocab;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a vocabulary: an object of tokens with their ids")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<AnyVocab, M::Error> {
                let mut texts = Texts::with_capacity(1 << 17);
                let mut key = String::new();
                let keep = |key: &mut String, text: &str| {
                    key.clear();
                    key.push_str(text);
                };
                while map.next_key_seed(Text(|text: &str| keep(&mut key, text)))?.is_some() {
                    texts.push(&key, map.next_value()?).map_err(M::Error::custom)?;
                }
                Vocab::new(texts).map(AnyVocab::Texts).map_err(M::Error::custom)
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> std::result::Result<AnyVocab, S::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(AnyVocab::Other(Value::Array(items)))
            }
        }
        deserializer.deserialize_any(VocabVisitor)
    }
}

/// Reads a text and shows it to a function, without making a `String` of it.
struct Text<F>(F);

impl<'de, F: FnMut(&str)> DeserializeSeed<'de> for Text<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<F: FnMut(&str)> Visitor<'_> for Text<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: Error>(mut self, text: &str) -> std::result::Result<(), E> {
        (self.0)(text);
        Ok(())
    }
}

/// Reads merges; none when there is null.
struct Merges;

impl<'de> DeserializeSeed<'de> for Merges {
    type Value = Option<Pairs>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Merges {
    type Value = Option<Pairs>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("merges: pairs of tokens")
    }

    fn visit_unit<E: Error>(self) -> std::result::Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> std::result::Result<Self::Value, S::Error> {
        let mut pairs = Pairs::default();
        while seq.next_element_seed(MergeSeed(&mut pairs))?.is_some() {}
        Ok(Some(pairs))
    }
}

/// Adds one merge: `"a b"` or `["a", "b"]`.
struct MergeSeed<'p>(&'p mut Pairs);

impl<'de> DeserializeSeed<'de> for MergeSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for MergeSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a merge: two tokens")
    }

    fn visit_str<E: Error>(self, text: &str) -> std::result::Result<(), E> {
        if text.starts_with("#version") {
            return Ok(());
        }
        match text.split_once(' ') {
            Some((a, b)) if !b.contains(' ') => self.0.push(a, b).map_err(E::custom),
            _ => Err(E::custom(format!("the merge {text:?} is not two tokens with a space between them"))),
        }
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> std::result::Result<(), S::Error> {
        match (seq.next_element::<String>()?, seq.next_element::<String>()?, seq.next_element::<String>()?) {
            (Some(a), Some(b), None) => self.0.push(&a, &b).map_err(S::Error::custom),
            _ => Err(S::Error::custom("a merge is not two tokens of the vocabulary")),
        }
    }
}

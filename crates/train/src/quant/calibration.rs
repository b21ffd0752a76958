//! The text that methods look at: windows of tokens, and others that they do not see.

use crate::data::parse;
use crate::order::Order;
use crate::sources::{Source, lines, read, text};
use crate::{Sample, Settings};
use lapis::{Error, Result};
use lapis_lm::LanguageModel;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Conversations that ship with lapis (`cargo xtask demo-model --rows 640 --seed 77`).
const OWN: &str = include_str!("../../data/calibration.jsonl");

/// Windows held out at most.
const HELD_OUT: usize = 32;

/// Text in tokens.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// Samples, in the order of the text; the last of them are held out by those who train on samples.
    pub samples: Vec<Sample>,
    /// Where they came from, for people.
    pub origin: String,
}

impl Calibration {
    /// Reads a text, or rows as those of fine-tuning: a file (`.jsonl`, `.csv`, `.parquet`), or the training set of a directory or of
    /// a data set in the hub's cache, `owner/name`. Without a file: the one that mlx-lm has fetched, if it has,
    /// else conversations that ship with lapis.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no text; rows that are none.
    pub fn read(file: Option<&Path>, model: &LanguageModel) -> Result<Calibration> {
        let fetched = std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache/mlx-lm/calibration_v5.txt"));
        match file.map(Path::to_path_buf).or(fetched.filter(|f| f.is_file())) {
            Some(file) => Calibration::of_file(&file, model),
            None => Calibration::own(model),
        }
    }

    /// The conversations that ship with lapis.
    ///
    /// # Errors
    /// A template that refuses them.
    pub fn own(model: &LanguageModel) -> Result<Calibration> {
        let origin = "conversations that ship with lapis".to_string();
        if model.tokenizer.chat_template(false).is_ok() {
            let samples = parse(lines(OWN, origin.clone())?, model, &Settings::default())?;
            return Ok(Calibration { samples, origin });
        }
        let text = |line: &str| {
            let row: Value = serde_json::from_str(line).unwrap_or_default();
            let said = row["messages"].as_array().into_iter().flatten().filter_map(|m| m["content"].as_str());
            said.collect::<Vec<_>>().join("\n")
        };
        let sample = |line| Ok(Sample { tokens: model.tokenizer.encode(&text(line), true)?, ..Sample::default() });
        Ok(Calibration { samples: OWN.lines().map(sample).collect::<Result<_>>()?, origin })
    }

    fn of_file(file: &Path, model: &LanguageModel) -> Result<Calibration> {
        let shown = file.display().to_string();
        let rows = file.extension().is_some_and(|e| e == "jsonl" || e == "csv" || e == "parquet");
        // What looks like a path is meant to be one.
        let named =
            !file.exists() && file.extension().is_none() && file.is_relative() && file.components().count() == 2;
        let files = if file.is_dir() || named {
            let absent = || Error::io(format!("[quantize] {shown} has no training set"));
            Source::find(&shown, None)?.split("train")?.ok_or_else(absent)?
        } else if rows {
            vec![read(file)?]
        } else {
            let tokens = model.tokenizer.encode(&text(file)?, true)?;
            return Ok(Calibration { samples: vec![Sample { tokens, ..Sample::default() }], origin: shown });
        };
        let mut samples = Vec::new();
        for rows in files {
            samples.extend(parse(rows, model, &Settings::default())?);
        }
        Ok(Calibration { samples, origin: shown })
    }

    /// How many windows of `length` tokens there are, and how many of the last of them are held out.
    fn held_out(&self, length: usize) -> [usize; 2] {
        let all = self.samples.iter().map(|s| s.tokens.len()).sum::<usize>() / length.max(1);
        [all, (all / 8).clamp(1, HELD_OUT)]
    }

    /// The samples that do not reach into what [`Calibration::windows`] of this length holds out, cut to pieces of `most` tokens.
    /// Those of fewer than `length` follow one another until there are so many, as in windows: who learns from short samples
    /// alone learns nothing of places further back.
    pub fn samples_before(&self, length: usize, most: usize) -> Vec<Sample> {
        let [all, held] = self.held_out(length);
        let mut left = all.saturating_sub(held) * length;
        let (mut found, mut short, enough) = (Vec::new(), Vec::new(), length.min(most).max(1));
        for sample in &self.samples {
            let end = sample.tokens.len().min(left);
            let whole = end == sample.tokens.len();
            left -= end;
            // Of a sample that reaches into it, whole pieces only.
            let pieces = sample.tokens[..end].chunks(most.max(1)).filter(|p| whole || p.len() == most);
            for piece in pieces {
                if piece.len() >= enough {
                    found.push(piece.to_vec());
                    continue;
                }
                short.extend_from_slice(piece);
                while short.len() >= enough {
                    let rest = short.split_off(enough);
                    found.push(std::mem::replace(&mut short, rest));
                }
            }
        }
        found.into_iter().map(|tokens| Sample { tokens, ..Sample::default() }).collect()
    }

    /// Cuts the text into windows of `length` tokens: those to look at, `count` at most (`None` takes all) in an order that
    /// follows from the seed, and, of the end of the text, those held out: an eighth, 32 at most.
    ///
    /// # Errors
    /// A text of fewer than two windows; a length below two.
    pub fn windows(&self, length: usize, count: Option<usize>, seed: u64) -> Result<[Vec<Vec<u32>>; 2]> {
        if length < 2 {
            return Err(Error::value(format!("[quantize] windows of {length} tokens; 2 are the least")));
        }
        let tokens: Vec<u32> = self.samples.iter().flat_map(|s| &s.tokens).copied().collect();
        let mut all: Vec<Vec<u32>> = tokens.chunks_exact(length).map(<[u32]>::to_vec).collect();
        if all.len() < 2 {
            return Err(Error::value(format!(
                "[quantize] {} has {} tokens, less than two windows of {length}; give a longer text, or a smaller --sequence-length where the command has it",
                self.origin,
                tokens.len()
            )));
        }
        let [_, held] = self.held_out(length);
        let held = all.split_off(all.len() - held);
        let order = Order::new(seed).permutation(all.len());
        let chosen = order.iter().take(count.unwrap_or(usize::MAX)).map(|&i| std::mem::take(&mut all[i as usize]));
        Ok([chosen.collect(), held])
    }
}

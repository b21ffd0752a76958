//! Rows of results, as JSON lines or as a table.

use crate::measure::Measured;
use serde_json::json;
use std::io::{IsTerminal, Write};

/// One line of the table.
pub(crate) struct Row {
    name: String,
    unit: String,
    /// What lapis reached.
    value: Option<f64>,
    limit: Option<f64>,
    /// What each peer reached, in the order of the columns.
    peers: Vec<Option<f64>>,
}

impl Row {
    /// A limit of the machine, shown for itself.
    pub(crate) fn of_limit(name: impl Into<String>, limit: f64, unit: &str) -> Row {
        Row { name: name.into(), unit: unit.into(), value: None, limit: Some(limit), peers: vec![] }
    }

    pub(crate) fn of_lapis(name: &str, m: &Measured) -> Row {
        let (value, limit) = (Some(m.value), Some(m.limit));
        Row { name: name.into(), unit: m.unit.into(), value, limit, peers: vec![] }
    }
}

/// The part of the limit that is reached. Times (`us/...`) and shares are better when smaller.
pub(crate) fn ratio(unit: &str, value: f64, limit: f64) -> f64 {
    if unit.starts_with("us") || unit.starts_with('%') { limit / value } else { value / limit }
}

/// Collects rows; prints each at once as JSON, or all as one table at the end (with a column a peer).
pub(crate) struct Report {
    json: bool,
    peers: Vec<String>,
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(json: bool, peers: &[String]) -> Report {
        Report { json, peers: peers.to_vec(), rows: vec![] }
    }

    pub(crate) fn row(&mut self, mut row: Row) {
        if self.json {
            match row.value {
                Some(value) => println!("{}", line(&row.name, value, &row.unit, row.limit)),
                None => println!("{}", line(&row.name, row.limit.unwrap_or(f64::NAN), &row.unit, None)),
            }
        }
        row.peers.resize(self.peers.len(), None);
        self.rows.push(row);
    }

    /// What `peer` reached on the work of row `name`; it is held against the same limit.
    pub(crate) fn peer_row(&mut self, peer: &str, name: &str, value: f64, unit: &str) {
        let at = self.rows.iter().position(|r| r.name == name && r.unit == unit).unwrap_or_else(|| {
            let peers = vec![None; self.peers.len()];
            self.rows.push(Row { name: name.into(), unit: unit.into(), value: None, limit: None, peers });
            self.rows.len() - 1
        });
        if self.json {
            println!("{}", line(&format!("{name}@{peer}"), value, unit, self.rows[at].limit));
        }
        if let Some(column) = self.peers.iter().position(|p| p == peer) {
            self.rows[at].peers[column] = Some(value);
        }
    }

    /// Says on a terminal what is being measured.
    pub(crate) fn progress(&self, what: &str) {
        let mut err = std::io::stderr();
        if !self.json && err.is_terminal() {
            let _ = write!(err, "\r\x1b[K{what}");
        }
    }

    pub(crate) fn finish(self) {
        self.progress("");
        if self.json {
            return;
        }
        let mut table = vec![["", "lapis", "limit", "ratio"].map(str::to_owned).to_vec()];
        table[0].extend(self.peers.iter().cloned());
        table[0].push("unit".into());
        let number = |v: Option<f64>| v.map_or("-".into(), short);
        for r in &self.rows {
            let reached = r.value.zip(r.limit).map(|(v, l)| format!("{:.1} %", 100.0 * ratio(&r.unit, v, l)));
            let mut cells = vec![r.name.clone(), number(r.value), number(r.limit), reached.unwrap_or("-".into())];
            cells.extend(r.peers.iter().copied().map(number));
            cells.push(r.unit.clone());
            table.push(cells);
        }
        println!("{}", layout(&table));
    }
}

fn line(name: &str, value: f64, unit: &str, limit: Option<f64>) -> String {
    let ratio = limit.map(|l| ratio(unit, value, l));
    let (value, limit, ratio) = (json!(value), json!(limit), json!(ratio));
    format!(r#"{{"name":{},"value":{value},"unit":{},"limit":{limit},"ratio":{ratio}}}"#, json!(name), json!(unit))
}

/// Four significant digits at most, no exponent.
fn short(v: f64) -> String {
    match v.abs() {
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.1}"),
        a if a >= 1.0 => format!("{v:.2}"),
        _ => format!("{v:.3}"),
    }
}

/// Columns as wide as their widest cell; names and units to the left, numbers to the right.
fn layout(table: &[Vec<String>]) -> String {
    let columns = table[0].len();
    let width: Vec<usize> = (0..columns).map(|c| table.iter().map(|r| r[c].len()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in table {
        let cells = row.iter().enumerate().map(|(c, cell)| {
            if c == 0 || c + 1 == columns {
                format!("{cell:<w$}", w = width[c])
            } else {
                format!("{cell:>w$}", w = width[c])
            }
        });
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_below_its_limit_is_better_than_the_limit() {
        assert_eq!(ratio("us/op", 0.5, 1.0), 2.0);
        assert_eq!(ratio("GB/s", 0.5, 1.0), 0.5);
    }

    #[test]
    fn columns_line_up() {
        let table = [["name", "x", "u"], ["a", "1234", "GB/s"]].map(|r| r.map(str::to_owned).to_vec());
        assert_eq!(layout(&table), "name     x  u\na     1234  GB/s\n");
    }
}

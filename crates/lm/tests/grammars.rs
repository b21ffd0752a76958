//! What a grammar accepts is valid, and what it cannot say is refused by name: the JSON-Schema-Test-Suite
//! (`../shared/data/conformance`), real vocabularies, hostile grammars.

mod shared;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lapis_lm::Grammar;
use lapis_lm::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};
use shared::shared;

/// Seconds in which a hostile grammar is over: compiling may take one of a processor, and beside other tests and compilers
/// its thread waits for its turn, up to sixty by the clock.
const SOON: u64 = 30;

/// A vocabulary of the 256 bytes, and one token that ends a text.
fn bytes() -> Tokenizer {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut other = 0x100u32..;
    let vocab: Map<String, Value> = (0..=255u8)
        .map(|b| {
            let c = if printable(&b) { b as char } else { char::from_u32(other.next().unwrap()).unwrap() };
            (c.to_string(), json!(b))
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0", "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "added_tokens": [{"id": 256, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    Tokenizer::from_json(tokenizer.to_string().as_bytes(), json!({"eos_token": "<end>"})).unwrap()
}

fn eos(tokenizer: &Tokenizer) -> Arc<BTreeSet<u32>> {
    Arc::new(tokenizer.eos_ids().clone())
}

/// Whether a text of `tokens`, and no more, is one of the grammar. Checks that what may come can come.
fn takes(grammar: &Grammar, eos: &Arc<BTreeSet<u32>>, tokens: &[u32]) -> bool {
    let mut constraint = grammar.constraint(eos);
    let end = *eos.first().unwrap();
    for token in tokens.iter().copied().chain([end]) {
        let mut logits = vec![0.0; end as usize + 1];
        if constraint.restrict(&mut logits).is_err() || logits[token as usize] != 0.0 {
            return false;
        }
        constraint.accept(token).unwrap();
    }
    true
}

fn takes_text(grammar: &Grammar, eos: &Arc<BTreeSet<u32>>, text: &str) -> bool {
    takes(grammar, eos, &text.bytes().map(u32::from).collect::<Vec<_>>())
}

/// How a value may be written.
fn writings(value: &Value) -> Vec<String> {
    let compact = value.to_string();
    let spaced = serde_json::to_string_pretty(value).unwrap();
    let line = spaced.replace("\n", " ").replace("  ", " ");
    vec![compact, spaced, line]
}

#[derive(Default, Debug)]
struct Counts {
    schemas: usize,
    refused: usize,
    valid: usize,
    accepted: usize,
}

fn suite(draft: &str, uri: &str, folders: &[&str]) -> Option<BTreeMap<String, Counts>> {
    let root = shared("data/conformance/JSON-Schema-Test-Suite/tests")?.join(draft);
    let tokenizer = bytes();
    let eos = eos(&tokenizer);
    let mut counts: BTreeMap<String, Counts> = BTreeMap::new();
    let mut wrong = Vec::new();
    for folder in folders {
        let mut files: Vec<_> = std::fs::read_dir(root.join(folder)).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        for path in files.iter().filter(|p| p.extension().is_some_and(|e| e == "json")) {
            let name = path.strip_prefix(&root).unwrap().display().to_string();
            // There, what a string's content may be is told to readers, and validators may ignore it.
            if name == "optional/content.json" {
                continue;
            }
            let groups: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            let count = counts.entry(name.clone()).or_default();
            for group in groups.as_array().unwrap() {
                let mut schema = group["schema"].clone();
                if let Value::Object(object) = &mut schema {
                    object.entry("$schema").or_insert(uri.into());
                }
                count.schemas += 1;
                let grammar = match Grammar::json_schema(&tokenizer, &schema) {
                    Ok(grammar) => grammar,
                    Err(e) => {
                        if std::env::var_os("SHOW").is_some() {
                            eprintln!("{name}: {}: {e}", group["description"]);
                        }
                        let impossible = e.message().contains("nothing is valid");
                        if !impossible && !e.message().contains("` ") && !e.message().contains("(at #") {
                            wrong.push(format!("{name}: {schema}: {e}"));
                        }
                        if !impossible {
                            count.refused += 1;
                            continue;
                        }
                        for test in group["tests"].as_array().unwrap() {
                            if test["valid"] == true {
                                wrong.push(format!("{name}: {schema}: {e}: {test}"));
                            }
                        }
                        continue;
                    }
                };
                for test in group["tests"].as_array().unwrap() {
                    let texts = writings(&test["data"]);
                    let taken = texts.iter().filter(|t| takes_text(&grammar, &eos, t)).count();
                    if test["valid"] == true {
                        count.valid += 1;
                        count.accepted += usize::from(taken > 0);
                        if taken < texts.len() && std::env::var_os("SHOW").is_some() {
                            eprintln!(
                                "{name}: {} {}: {taken}: {schema} {}",
                                group["description"], test["description"], test["data"]
                            );
                        }
                    } else if taken > 0 {
                        wrong.push(format!("{name}: {schema} takes {}", test["data"]));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}: {}", wrong.len(), wrong.join("\n"));
    let sum = |f: fn(&Counts) -> usize| counts.values().map(f).sum::<usize>();
    let (schemas, refused) = (sum(|c| c.schemas), sum(|c| c.refused));
    let (valid, accepted) = (sum(|c| c.valid), sum(|c| c.accepted));
    eprintln!(
        "{draft}: {schemas} schemas, {refused} refused; of the others {accepted} of {valid} valid values are taken"
    );
    for (name, c) in &counts {
        if c.refused > 0 || c.accepted < c.valid {
            eprintln!("  {name}: {} of {} refused, {} of {} valid taken", c.refused, c.schemas, c.accepted, c.valid);
        }
    }
    Some(counts)
}

#[test]
fn what_a_schema_takes_is_valid_2020_12() {
    suite("draft2020-12", "https://json-schema.org/draft/2020-12/schema", &["", "optional", "optional/format"]);
}

#[test]
fn what_a_schema_takes_is_valid_7() {
    suite("draft7", "http://json-schema.org/draft-07/schema#", &["", "optional", "optional/format"]);
}

/// Whether a grammar over bytes takes texts.
fn check(what: &str, grammar: lapis::Result<Grammar>, right: &[&str], wrong: &[&str]) {
    let eos = Arc::new(BTreeSet::from([256]));
    let grammar = grammar.unwrap_or_else(|e| panic!("{what}: {e}"));
    for text in right {
        assert!(takes_text(&grammar, &eos, text), "{what} does not take {text:?}");
    }
    for text in wrong {
        assert!(!takes_text(&grammar, &eos, text), "{what} takes {text:?}");
    }
}

#[test]
fn expressions_grammars_and_choices_are_followed_to_the_end() {
    let t = bytes();
    check("regex", Grammar::regex(&t, r"[a-c]{2,3}(/\d+)?"), &["ab", "abc/12"], &["a", "abcd", "ab/", "xab"]);
    check("é", Grammar::regex(&t, "[é-ü]+|日本"), &["é", "êë", "日本"], &["e", "日"]);
    let lark = "start: sum\nsum: NUM (\"+\" NUM)*\nNUM: /[0-9]+/\n";
    check("lark", Grammar::lark(&t, lark), &["1", "1+22+3"], &["", "1+", "+1"]);
    let nested = "start: \"(\" start \")\" | \"x\"\n";
    check("nested", Grammar::lark(&t, nested), &["x", "((x))"], &["((x)", "()"]);
    let odd = ["yes", "no \"quoted\" \\ /", "new\nline", "日"];
    check("choice", Grammar::choice(&t, &odd), &odd, &["ye", "yesno", ""]);
    check(
        "object",
        Grammar::json_object(&t),
        &["{}", "{\"a\": [1, null]}", "{\n  \"b\": -1.5e3\n}"],
        &["[]", "1", "{\"a\":}", "{,}"],
    );
}

#[test]
fn grammars_of_llama_cpp_are_followed_too() {
    let t = bytes();
    let say = |text: &str, right: &[&str], wrong: &[&str]| check(text, Grammar::lark(&t, text), right, wrong);
    say("root ::= \"yes\" | \"no\"", &["yes", "no"], &["", "yesno", "y"]);
    say("# A list.\nroot ::= item+\nitem ::= [a-c] \"-\" # one\n", &["a-", "c-b-"], &["", "d-", "a"]);
    say("root ::= (\n  \"a\" |\n  \"b/\" [/\\]\\n]\n)", &["a", "b//", "b/]", "b/\n"], &["b/", "ab//", "b/a"]);
    say(
        "root ::= a-b a_b start\na-b ::= \"1\"\na_b ::= \"2\"\nstart ::= .{2,3}",
        &["12xy", "12é\n日"],
        &["11xy", "12x", "12abcd"],
    );
    say(
        "root ::= \"\\\"\" [^\"\\\\\\x7F]* \"\\\"\" A\nA ::= [[&~^]?",
        &["\"a b\"", "\"\"[", "\"\"&", "\"\"^"],
        &["\"\"\"", "\"\"]"],
    );
    // llama.cpp's own grammar of JSON, but for its rules of numbers and strings.
    let json = "root ::= object\nvalue ::= object | array | \"true\" ws | \"0\" ws\n\nobject ::=\n  \"{\" ws (\n  key \":\" ws value\n    \
                (\",\" ws key \":\" ws value)*\n  )? \"}\" ws\n\narray  ::=\n  \"[\" ws (\n            value\n    (\",\" ws value)*\n  )? \"]\" ws\n\
                key ::= \"\\\"\" [a-z]+ \"\\\"\"\nws ::= | \" \" | \"\\n\" [ \\t]{0,20}";
    say(json, &["{}", "{\"a\": [true, {\n  \"b\": 0}]}"], &["[]", "{\"a\" true}", "{,}"]);
    assert!(Grammar::lark(&t, "root ::= nowhere").is_err());
}

#[test]
fn other_writings_of_a_value_do_not_pass_either() {
    let t = bytes();
    let say = |schema: Value, right: &[&str], wrong: &[&str]| {
        check(&schema.to_string(), Grammar::json_schema(&t, &schema), right, wrong);
    };
    say(
        json!({"type": "number", "maximum": 5}),
        &["5", "5.0", "-1", "4.99"],
        &["1e2", "5.1", "6", "5.00001", "05", "+1", "1."],
    );
    say(json!({"type": "number", "exclusiveMinimum": 0}), &["0.1", "7"], &["0", "0.0", "-0", "-0.0", "0e5", "-1"]);
    say(json!({"type": "number", "multipleOf": 0.01}), &["0.25", "3", "-0.5"], &["0.005", "1e-3", "0.251"]);
    say(
        json!({"type": "integer", "minimum": -3, "maximum": 12}),
        &["-3", "0", "12"],
        &["-4", "13", "120", "1.5", "1e1", "-03"],
    );
    say(
        json!({"allOf": [{"multipleOf": 4}, {"multipleOf": 6}], "type": "integer"}),
        &["12", "0", "-24"],
        &["4", "6", "8", "18"],
    );
    let object = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "minProperties": 1});
    let wrong = ["{}", "{\"a\":1,\"a\":\"x\"}", "{\"a\":\"x\"}", "{\"\\u0061\":\"x\"}", "{\"a\":1,}"];
    match Grammar::json_schema(&t, &object) {
        Ok(_) => say(object, &["{\"a\":1}"], &wrong),
        Err(e) => assert!(e.message().contains("`minProperties`"), "{e}"),
    }
    let text = json!({"type": "string", "minLength": 2, "maxLength": 3});
    say(
        text,
        &["\"ab\"", "\"😀é\"", "\"\\n\\\"x\""],
        &["\"a\"", "\"😀\"", "\"abcd\"", "\"\\ud83d\\ude00\"", "\"a\u{1}\""],
    );
    let tagged = json!({"oneOf": [
        {"type": "object", "properties": {"k": {"const": "a"}, "v": {"type": "integer"}}, "required": ["k", "v"]},
        {"type": "object", "properties": {"k": {"const": "b"}}, "required": ["k"]},
    ]});
    say(tagged, &["{\"k\":\"a\",\"v\":1}", "{\"k\":\"b\"}"], &["{\"k\":\"a\"}", "{\"k\":\"c\"}"]);
    let list = json!({"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "additionalProperties": false,
        "properties": {"v": {"type": "null"}, "next": {"$ref": "#/$defs/n"}}, "required": ["v"]}}});
    say(list, &["{\"v\":null,\"next\":{\"v\":null}}"], &["{\"v\":null,\"next\":{}}", "{\"next\":{\"v\":null}}"]);
}

#[test]
fn names_and_spaces_have_no_back_door() {
    let t = bytes();
    let schema = json!({"properties": {"a\nb": {"type": "integer"}}, "type": "object"});
    let right = ["{\"a\\nb\": 1}", "{\"c\": \"x\"}"];
    check("names", Grammar::json_schema(&t, &schema), &right, &["{\"a\\u000ab\": \"x\"}", "{\"a\\nb\": \"x\"}"]);
    let spaces = format!("[1,{}2]", " ".repeat(1000));
    let lines = format!("[1,{}2]", "\n".repeat(1000));
    check("spaces", Grammar::json_schema(&t, &json!({"type": "array"})), &["[1,\n  2]"], &[&spaces, &lines, "  []"]);
    let open = json!({"type": "object", "x-guidance": {"lenient": true}, "required": ["a"]});
    check("options", Grammar::json_schema(&t, &open), &["{\"a\":1}"], &["{}"]);
}

#[test]
fn what_is_not_supported_is_named_with_its_place() {
    let t = bytes();
    let cases = [
        (json!({"properties": {"a": {"items": {"not": {}}}}}), "`not` at #/properties/a/items "),
        (json!({"$ref": "#/$defs/x", "$defs": {"x": {"contains": {}}}}), "`contains` at #/$defs/x "),
        (json!({"uniqueItems": true}), "`uniqueItems` at # "),
        (json!({"anyOf": [{}, {"if": {}, "then": {}}]}), "`if` at #/anyOf/1 "),
        (
            json!({"properties": {"a": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}}),
            "`oneOf` of which several may hold at once at #/properties/a ",
        ),
        (json!({"minProperties": 2}), "`minProperties`"),
        (json!({"const": 9007199254740993u64}), "`const` of 9007199254740993"),
        (json!({"pattern": "(?=a)"}), "`pattern` \"(?=a)\": look-around"),
        (json!({"format": "regex"}), "`format` \"regex\" at # "),
        (json!({"$ref": "http://example.com/x"}), "`$ref` outside the schema"),
        (json!({"$ref": "#"}), "`$ref` that comes back to itself"),
        (json!({"$schema": "http://json-schema.org/draft-04/schema#"}), "`$schema` of "),
        (
            json!({"patternProperties": {"a": {}, "b": {"type": "null"}}}),
            "`patternProperties` with patterns that may match",
        ),
        (json!({"type": "strin"}), "seven types"),
        (json!({"minLength": -1}), "minLength is a whole number"),
        (json!(3), "a schema is an object"),
        (json!({"type": "integer", "minimum": 3, "maximum": 2}), "nothing is valid under #"),
    ];
    for (schema, says) in cases {
        let why = Grammar::json_schema(&t, &schema).err().unwrap_or_else(|| panic!("{schema} is taken"));
        assert!(why.message().contains(says), "{schema}: {why}");
    }
}

#[test]
fn a_schema_is_relaxed_by_what_is_not_supported_and_no_more() {
    let t = bytes();
    let say = |schema: Value, left: &[&str], right: &[&str], wrong: &[&str]| {
        let (relaxed, said) = Grammar::relax(&t, &schema).unwrap_or_else(|e| panic!("{schema}: {e}"));
        assert!(said.len() == left.len() && said.iter().zip(left).all(|(s, l)| s.starts_with(l)), "{schema}: {said:?}");
        assert!(left.is_empty() == (relaxed == schema), "{relaxed}");
        check(&schema.to_string(), Grammar::json_schema(&t, &relaxed), right, wrong);
    };
    say(json!({"type": "integer"}), &[], &["1"], &["\"a\""]);
    let several = json!({"type": "object", "required": ["a"], "additionalProperties": false, "not": {"type": "null"},
        "properties": {"a": {"type": "array", "uniqueItems": true, "items": {"type": "string", "format": "hostname"}}}});
    let left = [
        "`not` at # is not held to",
        "`uniqueItems` at #/properties/a ",
        "`format` \"hostname\" at #/properties/a/items ",
    ];
    let (_, mut said) = Grammar::relax(&t, &several).unwrap();
    said.sort();
    let mut sorted = left;
    sorted.sort_unstable();
    assert!(said.len() == 3 && said.iter().zip(sorted).all(|(s, l)| s.starts_with(l)), "{said:?}");
    let relaxed = Grammar::relax(&t, &several).unwrap().0;
    check(
        "several",
        Grammar::json_schema(&t, &relaxed),
        &["{\"a\": [\"x\", \"x\"]}"],
        &["{}", "{\"a\": [1]}", "{\"b\": 1}"],
    );
    let both = json!({"oneOf": [{"type": "integer"}, {"type": "number"}], "allOf": [{"maximum": 5}]});
    say(both, &["`oneOf` of which several may hold at once at # "], &["1", "1.5"], &["6", "\"a\""]);
    let deep =
        json!({"$ref": "#/$defs/x", "$defs": {"x": {"anyOf": [{"type": "null"}, {"type": "array", "contains": {}}]}}});
    say(deep, &["`contains` at #/$defs/x/anyOf/1 "], &["null", "[1]"], &["1"]);
    // Names that a pattern would have allowed stay allowed.
    let names = json!({"type": "object", "patternProperties": {"(?=a)b": {}}, "additionalProperties": false});
    say(names, &["`patternProperties` "], &["{\"x\": 1}"], &["[]"]);
    say(json!({"minProperties": 2, "maxProperties": 1e9, "type": "object"}), &["`minProperties`"], &["{}"], &["1"]);
    say(
        json!({"$schema": "http://json-schema.org/draft-04/schema#", "type": "null"}),
        &["`$schema` of"],
        &["null"],
        &["1"],
    );
    say(json!({"type": ["null", "string"], "pattern": "(?=a)"}), &["`pattern` "], &["null", "\"x\""], &["1"]);
    // What is no schema, or has no valid text, stays wrong.
    for wrong in
        [json!({"type": "strin"}), json!({"minLength": -1}), json!({"type": "integer", "minimum": 3, "maximum": 2})]
    {
        assert!(Grammar::relax(&t, &wrong).is_err(), "{wrong}");
    }
    // A hostile one ends as soon as any.
    let many: Vec<Value> = (0..2000).map(|_| json!({"not": {}})).collect();
    let begun = std::time::Instant::now();
    let outcome = Grammar::relax(&t, &json!({"anyOf": many}));
    assert!(outcome.is_err() && begun.elapsed().as_secs() < SOON, "{:?}", begun.elapsed());
}

#[test]
fn hostile_grammars_end_soon_and_are_refused() {
    let t = bytes();
    let deep = |open: &str, close: &str, n: usize| format!("{}{}", open.repeat(n), close.repeat(n));
    let mut nested = json!({});
    for _ in 0..100 {
        nested = json!({"properties": {"a": nested}});
    }
    let chain: Map<String, Value> = (0..3000)
        .map(|i| (i.to_string(), json!({"properties": {"x": {"$ref": format!("#/$defs/{}", i + 1)}}})))
        .chain([("3000".to_string(), json!({}))])
        .collect();
    let wide: Vec<Value> = (0..40).map(|i| json!({"properties": {format!("p{i}"): {"type": "integer"}}})).collect();
    let schemas = [
        ("nested", nested),
        ("chain", json!({"$ref": "#/$defs/0", "$defs": chain})),
        ("product", json!({"allOf": vec![json!({"anyOf": wide}); 10]})),
        ("long", json!({"const": "x".repeat(300_000)})),
        ("many", json!({"enum": (0..20_000).collect::<Vec<_>>()})),
        ("least", json!({"minItems": 1_000_000_000u64})),
        ("pattern", json!({"pattern": "^((a{1000}){1000}){1000}$"})),
        (
            "refs",
            json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}),
        ),
    ];
    for (name, schema) in schemas {
        let begun = std::time::Instant::now();
        let outcome = Grammar::json_schema(&t, &schema);
        // Of what is written when one comes to it, only the beginning can be tried.
        assert!(outcome.is_err() || name == "pattern", "{name} is taken");
        begin(outcome);
        assert!(begun.elapsed().as_secs() < SOON, "{name}: {:?}", begun.elapsed());
    }
    let towers = "(((a{999}){999}){999}){999}";
    let long = "a".repeat(100_000);
    let expressions = [&deep("(", ")", 10_000), towers, "a{99999999}", "[", "(", r"\p{Nope}", &long, "(?P<"];
    for text in expressions {
        let begun = std::time::Instant::now();
        let outcome = Grammar::regex(&t, text);
        // Counts cost nothing until text comes to them.
        assert!(outcome.is_err() || text.contains("999"), "{text:.40} is taken");
        begin(outcome);
        assert!(begun.elapsed().as_secs() < SOON, "{text:.40}: {:?}", begun.elapsed());
    }
    let grammars = [
        deep("(", ")", 5_000),
        format!("start: {}", deep("(", ")", 5_000)),
        "start: start".into(),
        "start: nowhere".into(),
        "start: \"a\" ~ 1..1000000000".into(),
        "start: a a a a\na: b b b b b b b b\nb: \"x\"{1000,100000000}\n".into(),
        "%import nothing".into(),
        "{\"grammars\": []}".into(),
        "start: %json {\"$ref\": \"#\"}".into(),
        "\"".into(),
        "start: /(/".into(),
        String::new(),
    ];
    for text in &grammars {
        let begun = std::time::Instant::now();
        begin(Grammar::lark(&t, text));
        assert!(begun.elapsed().as_secs() < SOON, "{text:.40}: {:?}", begun.elapsed());
    }
}

/// The first steps of whatever is taken.
fn begin(outcome: lapis::Result<Grammar>) {
    let Ok(grammar) = outcome else { return };
    let mut constraint = grammar.constraint(&Arc::new(BTreeSet::from([256])));
    for _ in 0..20 {
        let mut logits = vec![0.0; 257];
        if constraint.restrict(&mut logits).is_err() {
            return;
        }
        let next = logits.iter().position(|x| *x == 0.0).unwrap();
        constraint.accept(next as u32).unwrap();
    }
}

#[test]
fn response_formats_name_the_field_that_is_wrong() {
    let t = bytes();
    let made =
        |format: Value| Grammar::from_response_format(&t, &format).map(|g| g.is_some()).map_err(|e| e.to_string());
    assert_eq!(made(json!({"type": "text"})), Ok(false));
    assert_eq!(made(json!({"type": "json_object"})), Ok(true));
    let schema =
        json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": {"type": "object"}}});
    assert_eq!(made(schema), Ok(true));
    for (format, says) in [
        (json!([]), "response_format must be"),
        (json!({}), "response_format.type is missing"),
        (json!({"type": "xml"}), "response_format.type is \"xml\""),
        (json!({"type": "json_schema"}), "response_format.json_schema is missing"),
        (json!({"type": "json_schema", "json_schema": {}}), "response_format.json_schema.schema is missing"),
        (json!({"type": "json_schema", "json_schema": {"name": 1, "schema": {}}}), "json_schema.name must"),
        (json!({"type": "json_schema", "json_schema": {"strict": 1, "schema": {}}}), "json_schema.strict must"),
        (json!({"type": "json_schema", "json_schema": {"schema": {"not": {}}}}), "`not` at #"),
    ] {
        let why = made(format.clone()).unwrap_err();
        assert!(why.contains(says), "{format}: {why}");
    }
}

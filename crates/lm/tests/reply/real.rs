//! Vocabularies that models have, and what the makers of a format publish of it.

use super::formats::said;
use super::*;

/// A real tokenizer beside the repository.
fn real(name: &str) -> Option<Tokenizer> {
    let dir = shared(&format!("data/tokenizers/{name}"))?;
    let json = match std::fs::read(dir.join("tokenizer.json")) {
        Ok(json) => json,
        Err(_) => {
            let unpacked = Command::new("gzip").arg("-dc").arg(dir.join("tokenizer.json.gz")).output().unwrap();
            assert!(unpacked.status.success());
            unpacked.stdout
        }
    };
    let read = |file: &str| std::fs::read(dir.join(file)).ok();
    let mut config = read("tokenizer_config.json").map_or(json!({}), |c| serde_json::from_slice(&c).unwrap());
    if let Some(template) = read("chat_template.jinja") {
        config["chat_template"] = String::from_utf8(template).unwrap().into();
    }
    Some(Tokenizer::from_json(&json, config).unwrap())
}

#[test]
fn real_vocabularies_have_their_formats() {
    let arguments = r#"{"a": 1, "s": "é {x}"}"#;
    let think = "<think>\nhm\n</think>\n\n";
    let harmony = format!(
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{arguments}"
    );
    let rows = [
        (
            "qwen3",
            Format::JsonTools,
            format!("{think}<tool_call>\n{{\"name\": \"f\", \"arguments\": {arguments}}}\n</tool_call>"),
        ),
        ("gpt-oss", Format::Harmony, harmony),
        ("llama-3.2", Format::Llama3, format!("{{\"name\": \"f\", \"parameters\": {arguments}}}")),
        ("mistral-nemo", Format::Mistral, format!("[TOOL_CALLS] [{{\"name\": \"f\", \"arguments\": {arguments}}}]")),
        ("mistral-7b-v0.3", Format::Mistral, format!("[TOOL_CALLS] [{{\"name\": \"f\", \"arguments\": {arguments}}}]")),
        (
            "deepseek-v3",
            Format::DeepSeek,
            format!(
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
            ),
        ),
    ];
    for (name, format, all) in rows {
        let Some(tokenizer) = real(name) else { return };
        assert_eq!(Format::of(&tokenizer), Some(format), "{name}");
        let ids = tokenizer.encode(&all, false).unwrap();
        let prompt = tokenizer.encode("<|start|>assistant", false).unwrap();
        let mut reply = Reply::new(&tokenizer, &prompt, ReplyOptions { tools: tools(), ..ReplyOptions::default() });
        let mut taken: Vec<Taken> = ids.iter().map(|&id| reply.add(id, None).unwrap()).collect();
        taken.push(reply.add(0, Some(Finish::Stop)).unwrap());
        let (parts, _) = joined(taken);
        let thought = if reply.reasoning_tokens() > 0 { vec![reasoning("hm")] } else { Vec::new() };
        assert_eq!(thought.is_empty(), !["qwen3", "gpt-oss"].contains(&name));
        assert_eq!(parts, [thought, call(0, "f", arguments).to_vec()].concat(), "{name}");
        // And that is what its grammar allows.
        let grammar = call_grammar(&tokenizer, &tools(), None, true).unwrap();
        let eos = Arc::new(BTreeSet::from([tokenizer.eos_ids().first().copied().unwrap_or(2)]));
        let mut constraint = grammar.constraint(&eos);
        for id in ids {
            constraint.accept(id).unwrap_or_else(|e| panic!("{name}: {e} {:?}", tokenizer.token_text(id)));
        }
        constraint.accept(*eos.first().unwrap()).unwrap();
    }
}

#[test]
fn harmony_messages_are_told_apart() {
    let template = "<|channel|><|message|>";
    let c = Case { template, markers: &[], ..case() };
    let all = "<|channel|>analysis<|message|>one<|end|><|start|>assistant<|channel|>analysis<|message|>two<|end|>\
               <|start|>assistant<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>final\
               <|message|>It is ≥ 4.\n<|return|>";
    assert_eq!(c.parts(all), [reasoning("one\n\ntwo"), text("Let me see.\n\nIt is ≥ 4.\n")]);
    assert_eq!(c.parts("Hello <b>"), [text("Hello <b>")]);
    assert_eq!(c.parts("<|start|>assistant<|channel|>"), [text("<|start|>assistant<|channel|>")]);
    let unknown = "<|channel|>commentary to=browser.search code<|message|>{\"q\": 1}";
    assert_eq!(c.parts(unknown), [text(unknown)]);
    let prefilled = Case { prompt: "<|start|>assistant<|channel|>final<|message|>So", ..case() };
    let prefilled = Case { template, markers: &["<|start|>"], ..prefilled };
    assert_eq!(prefilled.parts(" it is"), [text("it is")]);
    // What the model's makers publish of it.
    let Some(file) = shared("data/conformance/openai-harmony/test-data/test_streamable_parser.txt") else { return };
    let Some(tokenizer) = real("gpt-oss") else { return };
    let all = std::fs::read_to_string(file).unwrap();
    let tools =
        vec![json!({"type": "function", "function": {"name": "browser.search", "parameters": {"type": "object"}}})];
    let mut reply = Reply::new(&tokenizer, &[], ReplyOptions { tools, ..ReplyOptions::default() });
    let ids = tokenizer.encode(&all, false).unwrap();
    let (parts, _) = joined(ids.iter().map(|&id| reply.add(id, None).unwrap()));
    let thought = all
        .split("<|message|>")
        .nth(1)
        .unwrap()
        .strip_suffix("<|end|><|start|>assistant<|channel|>commentary to=browser.search code")
        .unwrap();
    assert_eq!(parts[0], reasoning(thought));
    let query = r#"{"query": "current US president July 2025", "topn": 10, "source": "news"}"#;
    assert_eq!(parts[1..3], call(0, "browser.search", query));
    assert_eq!(said(&parts[3..]), "{\"result\": \"https://openai.com/\"}");
}

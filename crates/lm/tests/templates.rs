//! Templates: Jinja as transformers has it, what a chat may ask for, and what a hostile template gets.

use std::time::{Duration, Instant};

use lapis_lm::template::{Chat, Template};
use serde_json::{Value, json};

fn render(source: &str, chat: &Chat<'_>) -> Result<String, String> {
    Template::new(source).and_then(|t| t.render(chat)).map_err(|e| e.message().to_owned())
}

/// Expressions, statements, filters and methods one by one; `data/jinja.py` makes the expected texts.
#[test]
fn jinja_is_that_of_transformers() {
    let data: Value = serde_json::from_str(include_str!("data/jinja.json")).unwrap();
    let chat = Chat { keywords: data["context"].as_object(), ..Chat::default() };
    let mut wrong = Vec::new();
    for case in data["cases"].as_array().unwrap() {
        let source = case["template"].as_str().unwrap();
        let found = render(source, &chat);
        if found.as_deref().ok() != case["output"].as_str() {
            wrong.push(format!("{source}\n  gave {found:?}\n  not {}{}", case["output"], case["error"]));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_chat_has_its_variables() {
    let special = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let keywords = json!({"enable_thinking": false});
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let chat = Chat {
        messages: &messages,
        add_generation_prompt: true,
        keywords: keywords.as_object(),
        special_tokens: special.as_object(),
        ..Chat::default()
    };
    let source = "{{ bos_token }}{{ messages[0].content }}{{ enable_thinking }}{{ add_generation_prompt }}{{ tools }}";
    assert_eq!(render(source, &chat).unwrap(), "<s>HiFalseTrueNone");
    for name in ["messages", "tools", "add_generation_prompt", "tokenize"] {
        let keywords = json!({ name: 1 });
        let error = render("", &Chat { keywords: keywords.as_object(), ..Chat::default() }).unwrap_err();
        assert!(error.contains(name), "{error}");
    }
    let error = render("{{ raise_exception('only text') }}", &chat).unwrap_err();
    assert!(error.contains("only text"), "{error}");
}

#[test]
fn the_last_message_can_be_continued() {
    let plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}";
    let trims = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>{% endfor %}";
    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}]);
    let chat = Chat { messages: &messages, continue_final_message: true, ..Chat::default() };
    assert_eq!(render(plain, &chat).unwrap(), "<user>Hi<end><assistant>Well, ");
    assert_eq!(render(trims, &chat).unwrap(), "<user>Hi<end><assistant>Well,");
    let parts = json!([{"role": "assistant", "content": [{"type": "text", "text": "So"}]}]);
    let source = "{% for m in messages %}{{ m.content[0].text }}<end>{% endfor %}";
    assert_eq!(render(source, &Chat { messages: &parts, ..chat.clone() }).unwrap(), "So");
    for (source, messages) in
        [("no", &messages), (plain, &json!([])), (plain, &json!([{"role": "a"}])), (plain, &json!(3))]
    {
        render(source, &Chat { messages, ..chat.clone() }).unwrap_err();
    }
    render(plain, &Chat { add_generation_prompt: true, ..chat }).unwrap_err();
}

#[test]
fn syntax_errors_say_where() {
    for (source, place) in [
        ("one\n{% if x %}\n{{ 1 + }}", "line 3"),
        ("one\n  {% nope %}", "line 2, column 6"),
        ("é {{ 'a }}", "line 1, column 3"),
    ] {
        let error = render(source, &Chat::default()).unwrap_err();
        assert!(error.contains(place), "{error}");
    }
    for source in
        ["{{", "{% ", "{{ 'a }}", "{% endif %}", "{% for %}", "{% generation %}", "{{ a | nope( }}", "{{ ] }}", "{{ )"]
    {
        render(source, &Chat::default()).unwrap_err();
    }
    // What has no end where Jinja needs none is text.
    assert_eq!(render("{ } }} %} #}", &Chat::default()).unwrap(), "{ } }} %} #}");
}

/// Each ends with an error, soon, in bounded memory and without a crash.
#[test]
fn hostile_templates_end() {
    let long = |part: &str, n: usize| part.repeat(n);
    let nested = |open: &str, close: &str, n: usize| format!("{}1{}", open.repeat(n), close.repeat(n));
    let hostile = [
        "{% for a in range(1000000) %}{% for b in range(1000000) %}{% endfor %}{% endfor %}".into(),
        "{% for a in range(10000000000) %}{% endfor %}".into(),
        "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}".into(),
        "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}".into(),
        "{% set ns = namespace(x=[1]) %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}".into(),
        "{% set ns = namespace(x='a') %}{% for a in range(60) %}{% set ns.x = ns.x.replace('a', 'aaaa') %}{% endfor %}".into(),
        "{% set ns = namespace(x='a') %}{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}".into(),
        "{% set ns = namespace(x='a') %}{% for a in range(60) %}{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = x %}{% endfor %}".into(),
        "{% set ns = namespace(x=[]) %}{% for a in range(1000000) %}{% set ns.x = [ns.x] %}{% endfor %}".into(),
        "{% set ns = namespace(x=[]) %}{% for a in range(1000000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}".into(),
        "{% set ns = namespace(x=[]) %}{% for a in range(1000000) %}{% set ns.x = (ns.x,) %}{% endfor %}".into(),
        "{% set ns = namespace(x=[]) %}{% for a in range(1000000) %}{% set ns.x = ns.x, 1 %}{% endfor %}".into(),
        "{% set ns = namespace(x=1) %}{% for a in range(1000000) %}{% set ns.x = namespace(x=ns.x) %}{% endfor %}".into(),
        "{{ 'a' * 10000000000 }}".into(),
        "{{ [1] * 10000000000 }}".into(),
        "{{ '%1000000000d' % 1 }}".into(),
        "{{ '{:1000000000}'.format(1) }}".into(),
        "{{ 'a'.center(10000000000) }}{{ 'a'.zfill(10000000000) }}".into(),
        "{{ 'a' | indent(10000000000, true) }}".into(),
        "{{ [1] | tojson(indent=10000000000) }}".into(),
        "{% for i in range(20000) %}{{ 'a' * 1000 }}{% endfor %}".into(),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".into(),
        "{% macro f(x) %}{{ g(x) }}{% endmacro %}{% macro g(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}".into(),
        "{% include 'x' %}".into(),
        "{% import '/etc/passwd' as x %}".into(),
        "{% extends 'x' %}".into(),
        "{{ ''.__class__.__mro__ }}".into(),
        format!("{{{{ {} }}}}", nested("[", "]", 100_000)),
        format!("{{{{ {} }}}}", nested("(", ")", 100_000)),
        format!("{{{{ {} }}}}", nested("{1:", "}", 100_000)),
        format!("{{{{ {}1 }}}}", long("not ", 100_000)),
        format!("{{{{ {}1 }}}}", long("-", 100_000)),
        format!("{{{{ 1{} }}}}", long(" + 1", 100_000)),
        format!("{{{{ x{} }}}}", long(".y", 100_000)),
        format!("{{{{ x{} }}}}", long("|upper", 100_000)),
        format!("{}x", long("{% if a %}", 100_000)),
        format!("{{% if a %}}{}{{% endif %}}", long("{% elif a %}b", 80_000)),
        long("{% for a in [1] %}", 50_000),
        long("a", 2 << 20),
    ];
    for source in hostile {
        let start = Instant::now();
        let found = render(&source, &Chat::default());
        let name: String = source.chars().take(100).collect();
        assert!(found.is_err(), "{name} gave {} bytes", found.unwrap().len());
        assert!(start.elapsed() < Duration::from_secs(20), "{name} took {:?}", start.elapsed());
    }
}

/// What is just within the limits may be right or wrong, but does not overflow a thread's stack.
#[test]
fn deep_templates_do_not_crash() {
    for (open, close, n) in [("[", "]", 99), ("(", ")", 99), ("{1:", "}", 99), ("not ", "", 990), ("-", "", 990)] {
        let _ = render(&format!("{{{{ {}1{} }}}}", open.repeat(n), close.repeat(n)), &Chat::default());
    }
    for part in
        [" + 1", " - 1", " * 1", ".y", "|upper", " and 1", " if 1 else 1", " ** 1", " ~ 1", "[0]", "()", " is defined"]
    {
        for n in [100, 240, 490] {
            let _ = render(&format!("{{{{ x{} }}}}", part.repeat(n)), &Chat::default());
        }
    }
    let branches = "{% elif a %}b".repeat(300);
    let nested = "{% if true %}".repeat(140) + "x" + &"{% endif %}".repeat(140);
    let _ = render(&format!("{{% if a %}}{branches}{{% else %}}{nested}{{% endif %}}"), &Chat::default());
}

/// No value contains itself.
#[test]
fn cycles_are_refused() {
    for source in
        ["{% set ns.x = ns %}", "{% set ns.x = [ns] %}", "{% set ns.x = {'a': (ns, 1)} %}", "{{ namespace(x=ns) }}"]
    {
        let error = render(&format!("{{% set ns = namespace() %}}{source}"), &Chat::default()).unwrap_err();
        assert!(error.contains("namespace"), "{error}");
    }
}

/// Messages of any shape give text or an error.
#[test]
fn odd_messages_do_not_crash() {
    let mut deep = json!([]);
    for _ in 0..100_000 {
        deep = Value::Array(vec![deep]);
    }
    let source = "{% for m in messages %}{{ m.role }}{{ m['content'] | trim }}{{ m | tojson }}{% endfor %}";
    for messages in [json!(null), json!(3), json!("text"), json!({}), json!([null]), json!([[]]), json!([{"role": []}])]
    {
        let _ = render(source, &Chat { messages: &messages, ..Chat::default() });
    }
    render(source, &Chat { messages: &deep, ..Chat::default() }).unwrap_err();
    // Dropping it value by value keeps the test itself within its stack.
    while let Some(inner) = deep.as_array_mut().and_then(Vec::pop) {
        deep = inner;
    }
}

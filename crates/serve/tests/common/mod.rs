//! A server with the demo model, and a client that knows nothing but sockets.
#![allow(dead_code, missing_docs, unreachable_pub)]

use lapis_lm::Files;
use lapis_serve::{Address, Log, Server, Settings, Source};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

pub const DEMO: Files = Files {
    name: "demo model",
    config: include_bytes!("../../../../examples/demo-model/model/config.json"),
    weights: include_bytes!("../../../../examples/demo-model/model/model.safetensors"),
    tokenizer: include_bytes!("../../../../examples/demo-model/model/tokenizer.json"),
    tokenizer_config: include_bytes!("../../../../examples/demo-model/model/tokenizer_config.json"),
};

pub fn server(change: impl FnOnce(&mut Settings)) -> (Server, SocketAddr) {
    let mut settings = Settings::new("demo", Source::Files(DEMO));
    (settings.port, settings.log) = (0, Log::Off);
    change(&mut settings);
    let server = Server::start(settings).unwrap();
    let address = server.addresses.iter().find_map(|a| if let Address::Tcp(a) = a { Some(*a) } else { None });
    let address = address.unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while get(address, "/ready").0 != 200 {
        assert!(Instant::now() < until, "the model does not load");
        std::thread::sleep(Duration::from_millis(20));
    }
    (server, address)
}

/// Sends a request as it stands and reads until the connection ends.
pub fn raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(request).unwrap();
    let mut all = Vec::new();
    drop(stream.read_to_end(&mut all));
    String::from_utf8_lossy(&all).into_owned()
}

pub fn ask(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
    let length = body.len();
    let answer = raw(
        address,
        format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        )
        .as_bytes(),
    );
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    (status, head.to_ascii_lowercase(), body.to_string())
}

pub fn get(address: SocketAddr, path: &str) -> (u16, String, String) {
    ask(address, "GET", path, "", "")
}

pub const JSON: &str = "Content-Type: application/json\r\n";

pub fn post(address: SocketAddr, path: &str, body: &Value) -> (u16, Value) {
    let (status, _, text) = ask(address, "POST", path, JSON, &body.to_string());
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// The data of a stream's events.
pub fn events(text: &str) -> Vec<Value> {
    // Chunks of the transfer encoding stand between the lines.
    let lines = text.lines().filter_map(|l| l.strip_prefix("data: "));
    lines.filter(|l| *l != "[DONE]").map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// A template that knows tools, and leaves the model thinking where it has words for that.
const TOOLS: &str = "{% if tools %}<|im_start|>system
A call is <tool_call>
{\"name\": <name>, \"arguments\": <object>}
</tool_call>
{% for tool in tools %}{{ tool.function.name }}: {{ tool.function.description }}
{% endfor %}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content or '' }}{% for call in m.tool_calls or [] %}<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking %}<think>{% endif %}{% endif %}";

/// The demo model with a template that knows tools.
pub fn tools() -> Source {
    let mut config: Value = serde_json::from_slice(DEMO.tokenizer_config).unwrap();
    config["chat_template"] = TOOLS.into();
    Source::Files(Files { tokenizer_config: config.to_string().leak().as_bytes(), ..DEMO })
}

/// The word that begins thinking; the next one ends it.
pub const THINK: u64 = 2046;

/// The same, whose last two words are those that begin and end thinking.
pub fn thinking() -> Source {
    let Source::Files(files) = tools() else { panic!("files") };
    let mut tokenizer: Value = serde_json::from_slice(files.tokenizer).unwrap();
    let words = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    words.retain(|_, id| id.as_u64() < Some(THINK));
    for (word, id) in [("<think>", THINK), ("</think>", THINK + 1)] {
        tokenizer["model"]["vocab"][word] = id.into();
        let added = serde_json::json!({"id": id, "content": word, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true});
        tokenizer["added_tokens"].as_array_mut().unwrap().push(added);
        tokenizer["model"]["merges"].as_array_mut().unwrap().pop();
    }
    Source::Files(Files { tokenizer: tokenizer.to_string().leak().as_bytes(), ..files })
}

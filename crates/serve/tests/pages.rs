//! The pages: they hold to their policy, name nothing of elsewhere, and the dashboard's numbers are those of the server.

mod common;

use common::{ask, get, post, server};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[test]
fn pages_are_of_one_piece() {
    let (_server, at) = server(|_| {});
    for page in ["/", "/dashboard", "/docs"] {
        let (status, head, text) = get(at, page);
        assert_eq!(status, 200, "{page}");
        assert!(
            head.contains("content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'"),
            "{head}"
        );
        assert!(!text.contains(" style=") && !text.contains(" onclick") && !text.contains("<script>"), "{page}");
        for part in text.split(['"', '\'']).filter(|p| p.contains("//")) {
            assert!(
                part.starts_with("http://HOST") || part.contains("<!--") || part.contains("127.0.0.1"),
                "{page}: {part}"
            );
        }
        for file in text.split('"').filter(|p| p.ends_with(".css") || p.ends_with(".js") || p.ends_with(".ico")) {
            assert_eq!(get(at, file).0, 200, "{file}");
        }
    }
    let (_server, at) = server(|s| s.ui = false);
    for page in ["/", "/dashboard", "/app.js"] {
        assert_eq!(get(at, page).0, 404, "{page}");
    }
}

#[test]
fn the_dashboard_counts() {
    let (_server, at) = server(|s| s.decode_concurrency = 7);
    for _ in 0..2 {
        let body = json!({"prompt": "Once there was", "max_tokens": 9, "logit_bias": {"2": -100}});
        assert_eq!(post(at, "/v1/completions", &body).0, 200);
    }
    let look = || {
        let (status, _, text) = get(at, "/dashboard.json");
        (status, serde_json::from_str::<Value>(&text).unwrap())
    };
    // A request counts when all that worked for it have let go, which may be after its answer.
    let began = Instant::now();
    while look().1["requests"][0]["count"] != 2 && began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let (status, now) = look();
    assert_eq!((status, &now["state"], &now["batch"]["limit"]), (200, &json!("ready"), &json!(7)), "{now}");
    assert_eq!((&now["tokens"]["output"], &now["times"]["first"]["count"]), (&json!(18), &json!(2)), "{now}");
    assert_eq!((&now["models"][0]["id"], &now["models"][0]["context"]), (&json!("demo"), &json!(512)), "{now}");
    assert_eq!(now["requests"], json!([{"route": "/v1/completions", "status": 200, "count": 2}]));
    assert!(now["memory"]["used"].as_u64() > Some(0) && now["cache"]["hits"] == 1, "{now}");
    let (_server, at) = server(|s| s.metrics = false);
    assert_eq!(ask(at, "GET", "/dashboard.json", "", "").0, 404);
}

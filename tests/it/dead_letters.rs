//! Bad input of every kind is dead-lettered with its bytes and its reason, and nothing else is.

use floodgate::broker::{Message, Queue};

use crate::harness::process::run;
use crate::harness::{Stage, body, order, orders, sale};

#[tokio::test]
async fn every_kind_of_bad_input_is_dead_lettered_and_its_neighbours_are_decided() {
    let mut stage = Stage::new("bad").await;
    stage.open(sale("s", 10)).await;
    let element =
        |n: usize| String::from_utf8(body(&order(&format!("e-{n}"), "s", "u", 1))).expect("UTF-8");
    let long = format!("[{}]", (0..1001).map(element).collect::<Vec<_>>().join(","));
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("bad_json", b"".to_vec()),
        ("bad_json", b"{".to_vec()),
        ("bad_json", b"\xff\xfe{\0}\0".to_vec()),
        ("wrong_type", b"42".to_vec()),
        ("wrong_type", br#"{"order_id":1,"sale_id":"s","user_id":"u","quantity":1}"#.to_vec()),
        ("missing_field", br#"{"order_id":"o","sale_id":"s","user_id":"u"}"#.to_vec()),
        ("bad_id", br#"{"order_id":"a b","sale_id":"s","user_id":"u","quantity":1}"#.to_vec()),
        ("bad_id", br#"{"order_id":"o","sale_id":"s","user_id":"","quantity":1}"#.to_vec()),
        (
            "quantity_out_of_range",
            br#"{"order_id":"o","sale_id":"s","user_id":"u","quantity":0}"#.to_vec(),
        ),
        (
            "quantity_out_of_range",
            br#"{"order_id":"o","sale_id":"s","user_id":"u","quantity":9999999}"#.to_vec(),
        ),
        (
            "bad_time",
            br#"{"order_id":"o","sale_id":"s","user_id":"u","quantity":1,"submitted_at":"now"}"#
                .to_vec(),
        ),
        ("empty_array", b"[]".to_vec()),
        ("array_too_long", long.into_bytes()),
        ("body_too_large", vec![b' '; 10 << 20]),
        ("unknown_sale", body(&order("o", "never-opened", "u", 1))),
    ];
    let good = orders("s", 5);
    for (n, (_, bytes)) in bad.iter().enumerate() {
        if let Some(order) = good.get(n) {
            stage.post_orders(std::slice::from_ref(order)).await;
        }
        stage.post(std::slice::from_ref(bytes)).await;
    }
    let mixed = br#"[{"order_id":"m-1","sale_id":"s","user_id":"u","quantity":1}, {"order_id":7} ,
        {"order_id":"m-2","sale_id":"s","user_id":"u","quantity":1}]"#;
    stage.post(&[mixed]).await;
    let worker = stage.worker().await;
    let mut letters = stage.dead_letters(bad.len() + 1).await;
    let mut expected: Vec<(String, Vec<u8>)> =
        bad.into_iter().map(|(reason, bytes)| (reason.to_owned(), bytes)).collect();
    for (_, bytes) in &mut expected {
        // What is too large to be looked at is not kept either.
        if bytes.len() > 1 << 20 {
            bytes.truncate(floodgate::broker::KEPT_BYTES);
        }
    }
    expected.push(("wrong_type".into(), br#"{"order_id":7}"#.to_vec()));
    letters.sort();
    expected.sort();
    assert!(letters == expected, "the same reasons with the same bytes");
    let mut decided: Vec<String> = Vec::new();
    for _ in 0..7 {
        decided.push(stage.event().await["order_id"].as_str().expect("id").to_owned());
    }
    decided.sort();
    assert_eq!(decided, ["m-1", "m-2", "o-0", "o-1", "o-2", "o-3", "o-4"]);
    worker.stop().await;
    assert_eq!(stage.broker.depth(Queue::DeadLetters).await.expect("depth").messages, 0);
    stage.remove().await;
}

#[tokio::test]
async fn dead_letters_are_listed_redriven_and_purged_by_reason() {
    let mut stage = Stage::new("cli").await;
    let waiting = order("o", "late", "u", 1);
    stage.post_orders(std::slice::from_ref(&waiting)).await;
    stage.post(&["not json", "nor this"]).await;
    let worker = stage.worker().await;
    while stage.broker.depth(Queue::DeadLetters).await.expect("depth").messages < 3 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    for _ in 0..2 {
        let listed = run(&stage, &["dead-letters", "list", "--json"]);
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
        assert_eq!(listed["reasons"], serde_json::json!({ "bad_json": 2, "unknown_sale": 1 }));
        assert_eq!(listed["dead_letters"].as_array().map(Vec::len), Some(3));
    }
    stage.open(sale("late", 1)).await;
    let redriven = run(&stage, &["dead-letters", "redrive", "--reason", "unknown_sale", "--json"]);
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&redriven.stdout).expect("JSON")["redriven"],
        1
    );
    assert_eq!(stage.event().await["outcome"], "created");
    let refused = run(&stage, &["dead-letters", "purge"]);
    assert_eq!(refused.status.code(), Some(2), "purging everything has to be said");
    let purged = run(&stage, &["dead-letters", "purge", "--reason", "bad_json", "--json"]);
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&purged.stdout).expect("JSON")["purged"],
        2
    );
    let listed = run(&stage, &["dead-letters", "list"]);
    assert_eq!(String::from_utf8_lossy(&listed.stderr).trim(), "No dead letters.");
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_letter_whose_body_is_cut_is_left_where_it_is() {
    let stage = Stage::new("cut").await;
    stage.post(&[vec![b' '; 300_000]]).await;
    let worker = stage.worker().await;
    crate::harness::until(async || {
        stage.broker.depth(Queue::DeadLetters).await.expect("depth").messages == 1
    })
    .await;
    let redriven = run(&stage, &["dead-letters", "redrive", "--reason", "body_too_large"]);
    let said = String::from_utf8_lossy(&redriven.stderr).into_owned();
    assert!(said.contains("1 left") && said.contains("0 redriven"), "{said}");
    let letters = stage.dead_letters(1).await;
    assert_eq!(letters[0].1.len(), floodgate::broker::KEPT_BYTES);
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn dead_letters_survive_the_loss_of_their_queue() {
    let mut stage = Stage::new("lost-queue").await;
    stage.open(sale("s", 1)).await;
    let worker = stage.worker().await;
    stage.post_orders(&orders("s", 1)).await;
    stage.event().await;
    crate::harness::delete_queue(&stage, Queue::DeadLetters).await;
    stage.post(&["not json"]).await;
    assert_eq!(stage.dead_letters(1).await, [("bad_json".to_owned(), b"not json".to_vec())]);
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_compressed_body_is_named_as_such() {
    let mut stage = Stage::new("encoded").await;
    stage.open(sale("s", 1)).await;
    let channel = crate::harness::channel(&stage).await;
    let exchange = format!("{}.intents", stage.deployment.app.settings().namespace);
    let properties = lapin::BasicProperties::default().with_content_encoding("gzip".into());
    let options = lapin::options::BasicPublishOptions::default();
    channel
        .basic_publish(exchange.into(), "s".into(), options, b"\x1f\x8b", properties)
        .await
        .expect("publish");
    let worker = stage.worker().await;
    assert_eq!(
        stage.dead_letters(1).await,
        [("unsupported_encoding".to_owned(), b"\x1f\x8b".to_vec())]
    );
    // And what comes in without our library at all, with a body that needs more than one frame.
    let id = "x".repeat(40);
    let text = format!(
        "{{{}\"order_id\":\"{id}\",\"sale_id\":\"s\",\"user_id\":\"u\",\"quantity\":1}}",
        " ".repeat(200_000)
    );
    stage.broker.publish(&[Message::intent("s", text.as_bytes())]).await.all().expect("publish");
    assert_eq!(stage.event().await["order_id"], id.as_str());
    worker.stop().await;
    stage.remove().await;
}

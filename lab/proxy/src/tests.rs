use std::io::ErrorKind;
use std::time::Instant;

use super::*;

/// A server that answers with what it gets, and its proxy.
async fn echo() -> FaultProxy {
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = echo.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = echo.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    FaultProxy::start(server).await.unwrap()
}

async fn connect(proxy: &FaultProxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.unwrap()
}

async fn is_answered(link: &mut TcpStream) -> bool {
    link.write_all(b"x").await.unwrap();
    let answer = tokio::time::timeout(Duration::from_millis(200), link.read_u8()).await;
    answer.is_ok_and(|answer| answer.is_ok())
}

#[tokio::test]
async fn pieces_are_delayed_both_ways_and_arrive_in_order() {
    let delay = Duration::from_millis(40);
    let proxy = echo().await;
    proxy.set(Faults::delay(delay));
    let mut links = Vec::new();
    for _ in 0..5 {
        links.push(connect(&proxy).await);
    }
    let begun = Instant::now();
    for (number, link) in (0_u8..).zip(&mut links) {
        for round in 0..20 {
            link.write_all(&[number, round]).await.unwrap();
        }
    }
    for (number, link) in (0_u8..).zip(&mut links) {
        let mut answer = [0; 40];
        link.read_exact(&mut answer).await.unwrap();
        let expected: Vec<u8> = (0..20).flat_map(|round| [number, round]).collect();
        assert_eq!(answer.as_slice(), expected);
    }
    assert!(begun.elapsed() >= 2 * delay);
}

#[tokio::test]
async fn what_is_stalled_arrives_later_and_what_is_dropped_never() {
    let proxy = echo().await;
    let mut link = connect(&proxy).await;
    assert!(is_answered(&mut link).await);
    proxy.set(Faults::stall());
    assert!(!is_answered(&mut link).await);
    proxy.heal();
    assert_eq!(link.read_u8().await.unwrap(), b'x');
    proxy.set(Faults::without_answers());
    assert!(!is_answered(&mut link).await);
    proxy.heal();
    assert!(is_answered(&mut link).await);
}

#[tokio::test]
async fn links_are_cut_reset_and_refused() {
    let proxy = echo().await;
    let mut link = connect(&proxy).await;
    assert!(is_answered(&mut link).await);
    proxy.cut();
    assert_eq!(link.read(&mut [0]).await.unwrap(), 0);
    let mut link = connect(&proxy).await;
    assert!(is_answered(&mut link).await);
    proxy.reset();
    assert_eq!(link.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    proxy.set(Faults { refuses: true, ..Faults::default() });
    let mut link = connect(&proxy).await;
    assert!(!matches!(link.read(&mut [0]).await, Ok(1..)));
    proxy.heal();
    assert!(is_answered(&mut connect(&proxy).await).await);
}

#[tokio::test]
async fn a_link_is_reset_after_as_many_bytes_as_asked_for() {
    let proxy = echo().await;
    proxy.set(Faults { reset_after: Some(1000), ..Faults::default() });
    let mut link = connect(&proxy).await;
    link.write_all(&[1; 600]).await.unwrap();
    let mut answer = Vec::new();
    let ended = link.read_to_end(&mut answer).await;
    assert!(ended.is_err() && answer.len() <= 400, "{ended:?} after {}", answer.len());
}

#[tokio::test]
async fn a_link_is_closed_on_the_request_that_is_waited_for() {
    for passes in [true, false] {
        let proxy = echo().await;
        let mut link = connect(&proxy).await;
        proxy.set(Faults::trap("that", passes));
        assert!(is_answered(&mut link).await);
        link.write_all(b"this and that").await.unwrap();
        let mut answer = Vec::new();
        let _ = link.read_to_end(&mut answer).await;
        assert_eq!(proxy.trapped(), 1);
        assert!(passes || answer.is_empty());
    }
}

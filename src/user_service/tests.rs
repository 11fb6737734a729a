use std::future::pending;

use super::*;

fn question(user: &str, sale: &str) -> Question {
    Question {
        user: UserId::parse(user).unwrap(),
        sale: SaleId::parse(sale).unwrap(),
        _order: OrderId::parse("o").unwrap(),
    }
}

async fn ask(service: &UserService) -> Answer {
    service.answer(&question("u", "s"), pending()).await
}

#[tokio::test]
async fn by_default_everybody_is_allowed() {
    let service = UserService::new(Behaviour::default());
    assert_eq!(ask(&service).await, Answer::Allowed);
    let one = Counts { calls: 1, users: 1, allowed: 1, most_in_flight: 1, ..Counts::default() };
    assert_eq!(service.counts(), one);
}

#[tokio::test]
async fn calls_that_are_held_are_answered_when_they_are_released() {
    let latency = Latency::Fixed(MAX_LATENCY);
    let service = Arc::new(UserService::new(Behaviour { latency, ..Behaviour::default() }));
    service.hold();
    let asking: Vec<_> = (0..10)
        .map(|_| {
            let service = service.clone();
            tokio::spawn(async move { ask(&service).await })
        })
        .collect();
    while service.counts().in_flight < 10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(service.counts().allowed, 0);
    service.release();
    for asked in asking {
        assert_eq!(asked.await.unwrap(), Answer::Allowed);
    }
    assert_eq!(service.counts().most_in_flight, 10);
}

#[tokio::test]
async fn a_service_that_is_told_to_fail_fails_until_it_is_told_otherwise() {
    let service = UserService::new(Behaviour { failures: 0.5, ..Behaviour::default() });
    service.set_failing(true);
    assert_eq!([ask(&service).await, ask(&service).await], [Answer::Failed; 2]);
    service.set_failing(false);
    assert_eq!([ask(&service).await, ask(&service).await], [Answer::Allowed, Answer::Failed]);
    assert_eq!((service.calls(), service.counts().failed), (4, 3));
}

#[tokio::test]
async fn an_abandoned_call_is_counted() {
    let service = UserService::new(Behaviour::default());
    service.hold();
    tokio::select! {
        biased;
        _ = ask(&service) => panic!("it is held"),
        () = std::future::ready(()) => {}
    }
    let counts = service.counts();
    assert_eq!((counts.calls, counts.abandoned, counts.in_flight), (1, 1, 0));
}

#[tokio::test]
async fn waiting_calls_are_answered_when_the_service_stops() {
    let latency = Latency::Fixed(MAX_LATENCY);
    let service = UserService::new(Behaviour { latency, ..Behaviour::default() });
    let stopped = std::future::ready(());
    assert_eq!(service.answer(&question("u", "slow"), stopped).await, Answer::Allowed);
}

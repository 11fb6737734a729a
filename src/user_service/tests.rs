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

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
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
async fn calls_beyond_the_limit_are_told_when_to_come_back() {
    let rate_limit = std::num::NonZeroU32::new(1);
    let service = UserService::new(Behaviour { rate_limit, ..Behaviour::default() });
    assert_eq!(service.must_wait(), None);
    // A machine that stands still for a second lets another one through.
    let wait = (0..100).find_map(|_| service.must_wait()).unwrap();
    assert!(wait <= Duration::from_secs(1), "{wait:?}");
}

#[tokio::test]
async fn a_caller_who_goes_away_is_counted() {
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
async fn whoever_waits_is_answered_when_the_service_stops() {
    let hanging_sales = [SaleId::parse("slow").unwrap()].into();
    let hang = Duration::MAX;
    let service = UserService::new(Behaviour { hanging_sales, hang, ..Behaviour::default() });
    let stopped = std::future::ready(());
    assert_eq!(service.answer(&question("u", "slow"), stopped).await, Answer::Allowed);
    assert_eq!(service.counts().hung, 1);
}

#[tokio::test]
async fn hangs_are_a_share_of_the_calls_that_do_not_fail() {
    let service = UserService::new(Behaviour { failures: 0.5, hangs: 0.2, ..Behaviour::default() });
    for _ in 0..100 {
        ask(&service).await;
    }
    assert_eq!((service.counts().failed, service.counts().hung), (50, 10));
}

#[tokio::test]
async fn an_answer_is_due_after_its_latency_or_when_the_stall_ends() {
    let service = UserService::new(Behaviour {
        latency: Latency::Fixed(ms(150)),
        hang: ms(5000),
        stall: Some(Stall::new(ms(1000), ms(200)).unwrap()),
        ..Behaviour::default()
    });
    for (at, due) in [(0, 150), (640, 790), (660, 1000), (850, 1000), (999, 1000), (1000, 1150)] {
        assert_eq!(service.due(ms(at), false), ms(due), "came at {at} ms");
    }
    assert_eq!(service.due(ms(100), true), ms(5100));
    assert_eq!(service.due(ms(850), true), ms(6000), "the stall at its end");
}

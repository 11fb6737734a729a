//! The live page in a real browser: what a visitor sees and does.

use crate::api::tokens::{SECRET, Signer, claims};
use crate::harness::api::{Served, on_free_port};
use crate::harness::browser::Browser;
use crate::harness::{Stage, sale, unique};

/// Whether the buy button can be pressed, and why not.
const BLOCKED: &str = "return document.querySelector('#buy').getAttribute('aria-disabled')";
const ORDERS: &str = "return document.querySelectorAll('#orders > li').length";
/// Counts how often the line of decisions is drawn anew, from the first call on.
const MOVED: &str = "
    if (window.moves === undefined) {
        window.moves = 0;
        const watcher = new MutationObserver(() => { window.moves += 1; });
        watcher.observe(document.querySelector('#spark .line'), { attributes: true });
    }
    return window.moves;";
const AUDIT: &str = include_str!("page/audit.js");

/// Opens a sale with the form for operators, and goes to its page by its link.
async fn open_sale(browser: &Browser, served: &Served, sale: &str, stock: u32) {
    browser.go(served.url()).await;
    browser.fill("#open-id", sale).await;
    browser.fill("#open-stock", &stock.to_string()).await;
    browser.click("#open-button").await;
    browser.sees("#open-answer", sale).await;
    browser.click(&format!("#open-sales a[href='#/sales/{sale}']")).await;
    browser.sees("h1", sale).await;
    browser.sees("#remaining", &stock.to_string()).await;
}

async fn audit(browser: &Browser, what: &str) {
    for (width, scheme) in [(360, "light"), (360, "dark"), (1200, "light"), (1200, "dark")] {
        browser.look(width, scheme).await;
        let wrong = browser.run(AUDIT).await;
        assert_eq!(wrong, serde_json::json!([]), "{what} at {width} px, {scheme}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_unit_is_bought_and_a_restock_lets_visitors_buy_again() {
    let stage = Stage::with("page-buy", on_free_port).await;
    let served = Served::up(&stage.deployment.app).await;
    let browser = Browser::open().await;
    let sale = unique("bottle");

    open_sale(&browser, &served, &sale, 1).await;
    browser.sees("#state", "Open").await;
    browser.click("#buy").await;
    browser.sees("#answer", "Yours: 1 unit").await;

    browser.sees("#state", "Sold out").await;
    browser.sees("#why", "Sold out").await;
    browser.until("buying is blocked", BLOCKED, |blocked| blocked == "true").await;
    browser.click("#buy").await;
    assert_eq!(browser.run(ORDERS).await, 1, "a blocked button sends nothing");

    browser.fill("#units", "1").await;
    browser.click("#restock").await;
    browser.click("#confirm-yes").await;
    browser.sees("#operate-answer", "1 unit added").await;
    browser.until("buying is possible again", BLOCKED, |blocked| blocked == "false").await;
    browser.sees("#remaining", "1").await;
    browser.click("#buy").await;
    browser.until("two orders are listed", ORDERS, |orders| orders == 2).await;
    browser.sees("#orders > li:first-child", "Yours: 1 unit").await;
    browser.sees("#sold", "2").await;

    assert_eq!(browser.complaints().await, Vec::<String>::new(), "on the console");
    drop(browser);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_without_an_answer_is_sent_again_and_counts_once() {
    let stage = Stage::with("page-again", on_free_port).await;
    let served = Served::up(&stage.deployment.app).await;
    let browser = Browser::open().await;

    open_sale(&browser, &served, &unique("bottle"), 5).await;
    browser.offline(true).await;
    browser.click("#buy").await;
    browser.sees("#answer", "No answer from the server").await;
    browser.sees("#reach", "can’t be reached").await;
    browser.offline(false).await;
    browser.sees("#answer", "Yours: 1 unit").await;
    browser.sees("#reach", "Live").await;
    browser.sees("#remaining", "4").await;
    assert_eq!(browser.run(ORDERS).await, 1);

    drop(browser);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_with_a_token_finds_the_order_by_the_id_in_the_answer() {
    let stage = Stage::with("page-token", |settings| {
        on_free_port(settings);
        settings.api.jwt_secret = SECRET.into();
    })
    .await;
    let name = unique("bottle");
    stage.open(sale(&name, 1)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let browser = Browser::open().await;

    browser.go(&format!("{}/#/sales/{name}", served.url())).await;
    browser.fill("#token", &Signer::Hs256(SECRET).sign(&claims("me", ""))).await;
    browser.click("#token-form button").await;
    browser.fill("#buyer", "me").await;
    browser.click("#buy").await;
    browser.sees("#answer", "in the queue").await;
    browser.sees("#orders > li:first-child", "Order k-").await;
    // The page asks for it at that id.
    let worker = stage.worker().await;
    browser.sees("#answer", "Yours: 1 unit").await;
    assert_eq!(browser.run(ORDERS).await, 1);

    drop(browser);
    worker.stop().await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sells_without_checks_while_the_user_service_is_unavailable() {
    let stage = Stage::with("page-checks", on_free_port).await;
    // Nobody checks users here: verification.url is empty.
    let served = Served::up(&stage.deployment.app).await;
    let browser = Browser::open().await;

    let checked = unique("checked");
    browser.go(served.url()).await;
    browser.fill("#open-id", &checked).await;
    browser.fill("#open-stock", "5").await;
    browser.click("#open-verification").await;
    browser.click("#open-button").await;
    browser.click(&format!("#open-sales a[href='#/sales/{checked}']")).await;
    browser.sees("#users", "checked first").await;
    browser.click("#buy").await;
    browser.sees("#verification", "Sell without checks").await;
    browser.click("#verification").await;
    audit(&browser, "the question before selling without checks").await;
    browser.click("#confirm-yes").await;
    browser.sees("#operate-answer", "not checked any more").await;
    browser.sees("#users", "not checked").await;
    browser.sees("#answer", "Yours: 1 unit").await;
    browser.sees("#verification", "Check users").await;
    browser.click("#verification").await;
    browser.click("#confirm-yes").await;
    browser.sees("#users", "checked first").await;
    let focus = "return document.activeElement.id";
    assert_eq!(browser.run(focus).await, "verification", "the focus stays on the button");

    browser.click("#pause-hold").await;
    browser.click("#confirm-yes").await;
    browser.sees("#operate-answer", "Orders wait until you go on").await;
    browser.sees("#state", "Paused").await;
    browser.sees("#pause-hold", "Go on selling").await;
    browser.click("#pause-refuse").await;
    browser.click("#confirm-yes").await;
    browser.sees("#why", "When it goes on, you can buy").await;
    browser.sees("#pause-refuse", "Go on selling").await;
    browser.click("#pause-refuse").await;
    browser.sees("#state", "Open").await;
    browser.sees("#pause-hold", "Pause: hold orders").await;

    assert_eq!(browser.complaints().await, Vec::<String>::new(), "on the console");
    drop(browser);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_can_use_the_page() {
    let stage = Stage::with("page-audit", on_free_port).await;
    let served = Served::up(&stage.deployment.app).await;
    let browser = Browser::open().await;
    let name = unique("a-name-as-long-as-names-may-be-0123456789");

    open_sale(&browser, &served, &name, 1).await;
    audit(&browser, "a sale that is open").await;
    browser.click("#buy").await;
    browser.sees("#state", "Sold out").await;
    browser.sees("#answer", "Yours").await;
    audit(&browser, "a sale that is sold out").await;
    browser.click("#close").await;
    audit(&browser, "the question before closing").await;
    browser.click("#confirm-yes").await;
    browser.sees("#state", "Closed").await;
    let focus = "return document.activeElement.id";
    assert_eq!(browser.run(focus).await, "close", "the focus is where it was before the question");

    browser.click("nav a").await;
    browser.sees("#other-sales", &name).await;
    browser.sees("#figures-note", "counted").await;
    browser.sees("#created", "1").await;
    browser.sees("#servers", "PostgreSQL: answers").await;
    browser.sees("#workers", "orders a second").await;
    audit(&browser, "the overview").await;
    // The cards are asked for each second; whoever stands on one must not lose their place.
    browser.run("document.querySelector('#other-sales a').focus()").await;
    browser
        .until("the figures moved on twice", MOVED, |moves| moves.as_u64().is_some_and(|n| n >= 2))
        .await;
    let focus = "return document.activeElement.textContent";
    assert_eq!(browser.run(focus).await, name.as_str());
    assert_eq!(browser.complaints().await, Vec::<String>::new(), "on the console");

    drop(browser);
    served.stop().await;
    stage.remove().await;
}

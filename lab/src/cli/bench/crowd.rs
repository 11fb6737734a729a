//! What clients that take much and give little cost the others.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::api;
use super::report::{PER_SECOND, Report};
use crate::cli::load::Load;
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::cli::server::Server;
use floodgate::domain::order::SaleId;

/// Connections that post orders.
const BUYERS: u32 = 50;
/// Connections that send one byte a second, half of them in the head of a request and half in its body.
const SLOW: u32 = 500;
/// Connections that hold a stream open.
const FOLLOWERS: u32 = 500;
/// So many of the crowd have one address.
const OF_ADDRESS: u32 = 250;
/// How long the crowd may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(30);
const BYTE_EVERY: Duration = Duration::from_secs(1);
/// A connection that was closed is opened again after this pause.
const PAUSE: Duration = Duration::from_secs(1);

/// Measures, the two taking turns.
pub(super) async fn measure(
    deployment: &TempDeployment,
    config: Option<PathBuf>,
    (orders, rounds): (u32, u16),
) -> anyhow::Result<Report> {
    let mut report = Report::of(deployment).await?;
    report.about("orders", orders);
    let server = Server::limited_api(deployment, config).await?;
    let address = server.address();
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let (mut slow_connected, mut streams_open) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        alone.push(rate(deployment, address, Load::new(2 * round, orders)).await?);
        let load = Load::new(2 * round + 1, orders);
        load.open_sales(deployment).await?;
        let crowd = Crowd::connect(address, &load.sale_id()).await?;
        beside.push(rate(deployment, address, load).await?);
        slow_connected.push(f64::from(crowd.slow.load(Ordering::Relaxed)));
        streams_open.push(f64::from(crowd.following.load(Ordering::Relaxed)));
    }
    server.stop().await?;
    report.figure(format!("accepted, {BUYERS} connections"), PER_SECOND, &alone);
    report.figure("the same beside the crowd", PER_SECOND, &beside);
    report.figure("slow connections open", "", &slow_connected);
    report.figure("streams open", "", &streams_open);
    report.ratio("beside the crowd / alone", &beside, &alone);
    Ok(report)
}

/// Accepted orders per second.
async fn rate(deployment: &TempDeployment, address: SocketAddr, load: Load) -> anyhow::Result<f64> {
    load.open_sales(deployment).await?;
    Ok(api::post(Arc::new(load), address, BUYERS, false).await?.0)
}

/// Clients that take much and give little. They leave when it is dropped.
struct Crowd {
    _clients: JoinSet<()>,
    /// Those that are connected, and those whose stream has begun.
    slow: Arc<AtomicU32>,
    following: Arc<AtomicU32>,
}

impl Crowd {
    /// Waits until all streams are open and slow clients are connected.
    async fn connect(server: SocketAddr, sale: &SaleId) -> anyhow::Result<Self> {
        let mut clients = JoinSet::new();
        let (slow, following) = (Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
        for number in 0..SLOW {
            let (counted, whole) = (slow.clone(), order_head(sale, server));
            clients.spawn(async move {
                // Half of the clients never end the head, the others never the body.
                let sent = if number % 2 == 0 { 0 } else { whole.len() };
                loop {
                    let _ = dribble(server, from(number), &whole, sent, &counted).await;
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        for number in 0..FOLLOWERS {
            let (counted, head) = (following.clone(), stream_head(sale, server));
            clients.spawn(async move {
                loop {
                    let _ = follow(server, from(SLOW + number), &head, &counted).await;
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        let deadline = Instant::now() + ARRIVAL;
        while following.load(Ordering::Relaxed) < FOLLOWERS
            || slow.load(Ordering::Relaxed) < SLOW / 2
        {
            if Instant::now() > deadline {
                let (slow, following) =
                    (slow.load(Ordering::Relaxed), following.load(Ordering::Relaxed));
                bail!("the crowd did not arrive: {slow} slow connections, {following} streams");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Self { _clients: clients, slow, following })
    }
}

/// The address that client `number` of the crowd has: one of the loopback network.
fn from(number: u32) -> IpAddr {
    let last = u8::try_from(2 + number / OF_ADDRESS).unwrap_or(u8::MAX);
    Ipv4Addr::new(127, 0, 0, last).into()
}

async fn connect(server: SocketAddr, from: IpAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(server).await
}

fn order_head(sale: &SaleId, server: SocketAddr) -> Vec<u8> {
    format!(
        "POST /v1/sales/{sale}/orders HTTP/1.1\r\nHost: {server}\r\n\
         Content-Type: application/json\r\nContent-Length: 4000\r\n\r\n"
    )
    .into_bytes()
}

fn stream_head(sale: &SaleId, server: SocketAddr) -> Vec<u8> {
    format!("GET /v1/sales/{sale}/stream HTTP/1.1\r\nHost: {server}\r\n\r\n").into_bytes()
}

/// Sends the first `at_once` bytes of `head`, and then one a second, blanks after its end, until the server
/// answers or closes.
async fn dribble(
    server: SocketAddr,
    from: IpAddr,
    head: &[u8],
    at_once: usize,
    connected: &AtomicU32,
) -> std::io::Result<()> {
    let mut stream = connect(server, from).await?;
    let _counted = Counted::one(connected);
    let (mut answer, mut rest) = ([0; 512], head[at_once..].iter());
    stream.write_all(&head[..at_once]).await?;
    loop {
        tokio::select! {
            answered = stream.read(&mut answer) => return answered.map(drop),
            () = tokio::time::sleep(BYTE_EVERY) => {}
        }
        stream.write_all(&[*rest.next().unwrap_or(&b' ')]).await?;
    }
}

/// Reads a stream of events until the server ends it.
async fn follow(
    server: SocketAddr,
    from: IpAddr,
    head: &[u8],
    following: &AtomicU32,
) -> std::io::Result<()> {
    let mut stream = connect(server, from).await?;
    stream.write_all(head).await?;
    let mut bytes = [0; 4096];
    let count = stream.read(&mut bytes).await?;
    if !bytes[..count].starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    let _counted = Counted::one(following);
    while stream.read(&mut bytes).await? > 0 {}
    Ok(())
}

/// Counts one for as long as it lives.
struct Counted<'a>(&'a AtomicU32);

impl<'a> Counted<'a> {
    fn one(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

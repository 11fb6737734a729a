//! A TCP proxy that can cut its links, lead new ones elsewhere, and swallow what is said.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A link between a client and a server.
pub struct Proxy {
    pub address: SocketAddr,
    cuts: watch::Sender<u64>,
    shared: Arc<Shared>,
}

/// What a proxy and its links share.
#[derive(Default)]
struct Shared {
    server: Mutex<String>,
    swallow: AtomicBool,
    trap: Mutex<Option<Trap>>,
    trapped: AtomicUsize,
}

/// A request on which a link is cut.
struct Trap {
    holds: Vec<u8>,
    passes: bool,
}

impl Proxy {
    /// Listens on a port of its own and passes everything on to `server`.
    pub async fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (cuts, seen) = watch::channel(0);
        let shared = Arc::new(Shared { server: Mutex::new(server), ..Shared::default() });
        let links = shared.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = links.server.lock().expect("a lock").clone();
                let Ok(upstream) = TcpStream::connect(server).await else { continue };
                tokio::spawn(link(client, upstream, seen.clone(), links.clone()));
            }
        });
        Self { address, cuts, shared }
    }

    /// Leads new links to `server`. Those there are stay as they are.
    pub fn lead_to(&self, server: String) {
        *self.shared.server.lock().expect("a lock") = server;
    }

    /// Cuts every link there is; new ones are made as before.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// From now on drops what the server answers, or passes it on again.
    pub fn swallow_answers(&self, on: bool) {
        self.shared.swallow.store(on, Ordering::SeqCst);
    }

    /// From now on cuts a link on a request that holds `text`, before or after the server gets it.
    pub fn cut_on(&self, text: &str, passes: bool) {
        let trap = Trap { holds: text.as_bytes().to_vec(), passes };
        *self.shared.trap.lock().expect("a lock") = Some(trap);
    }

    /// Passes every request on again.
    pub fn pass_all(&self) {
        *self.shared.trap.lock().expect("a lock") = None;
    }

    /// How many links were cut on a request.
    pub fn trapped(&self) -> usize {
        self.shared.trapped.load(Ordering::SeqCst)
    }
}

impl Shared {
    /// Whether a request is passed on, and whether the link is cut then.
    fn sees(&self, request: &[u8]) -> (bool, bool) {
        match &*self.trap.lock().expect("a lock") {
            Some(Trap { holds, passes })
                if request.windows(holds.len()).any(|window| window == holds) =>
            {
                (*passes, true)
            }
            _ => (true, false),
        }
    }
}

async fn link(
    mut client: TcpStream,
    mut server: TcpStream,
    mut cuts: watch::Receiver<u64>,
    shared: Arc<Shared>,
) {
    cuts.mark_unchanged();
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let up = async {
        let mut buffer = vec![0; 65536];
        loop {
            let read = from_client.read(&mut buffer).await?;
            if read == 0 {
                return Ok::<_, std::io::Error>(());
            }
            let (passes, cut) = shared.sees(&buffer[..read]);
            if passes {
                to_server.write_all(&buffer[..read]).await?;
            }
            if cut {
                shared.trapped.fetch_add(1, Ordering::SeqCst);
                return Ok(());
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; 65536];
        loop {
            let read = from_server.read(&mut buffer).await?;
            if read == 0 {
                return Ok::<_, std::io::Error>(());
            }
            if !shared.swallow.load(Ordering::SeqCst) {
                to_client.write_all(&buffer[..read]).await?;
            }
        }
    };
    tokio::select! {
        _ = up => {}
        _ = down => {}
        _ = cuts.changed() => {}
    }
}

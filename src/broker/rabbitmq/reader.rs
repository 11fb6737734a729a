//! Reads single messages without a limit on the size of a frame.
//!
//! RabbitMQ sends the properties of a message in one frame, with headers that it has added itself, and does
//! so even when the frame is larger than the maximum agreed on. The client library closes the connection
//! then, and has no setting for it. This reader uses the library's codec, and takes what comes.

use std::time::Duration;

use amq_protocol::auth::Credentials;
use amq_protocol::frame::{AMQPFrame, ProtocolVersion, gen_frame, parse_frame};
use amq_protocol::protocol::{AMQPClass, basic, channel, connection};
use futures_util::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use lapin::BasicProperties;
use lapin::tcp::AMQPUriTcpExt;
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;

use super::Link;
use super::headers::header_text;
use crate::broker::BrokerError;

/// The one channel of a reader.
const CHANNEL: u16 = 1;

/// The largest frame that is taken, in bytes. On RabbitMQ the agreed maximum is 131,072 by default; one
/// publisher can exceed it by what the broker adds, which is some hundred bytes.
const MAX_FRAME_BYTES: usize = 4 << 20;

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection that takes messages one by one. Those that are not acknowledged come back to their places
/// in the queue when it ends.
pub(super) struct Reader {
    stream: Box<dyn Stream>,
    /// Bytes that have come and are no whole frame yet.
    came: Vec<u8>,
    timeout: Duration,
    /// The maximum agreed on, in bytes.
    pub frame_max: usize,
    /// As the server gives it; empty if it does not.
    pub server_version: String,
}

/// A message that was taken.
pub(super) struct Taken {
    pub tag: u64,
    pub routing_key: String,
    pub properties: BasicProperties,
    /// The bytes of the frame that held the properties.
    pub properties_bytes: usize,
    pub body: Vec<u8>,
}

impl Reader {
    pub(super) async fn connect(link: &Link) -> Result<Self, BrokerError> {
        let runtime = &lapin::runtime::default_runtime().map_err(super::classify_error)?;
        let connecting = link.nodes.first(|node| async move {
            let stream = node.connect_with_config_async(link.tls.as_ref(), runtime).await;
            let stream = Box::new(stream.map_err(failed)?);
            let (came, server_version, timeout) = (Vec::new(), String::new(), link.timeout);
            let mut reader = Self { stream, came, timeout, frame_max: 0, server_version };
            reader.open(&node).await?;
            Ok(reader)
        });
        tokio::time::timeout(link.timeout, connecting).await.map_err(failed)?
    }

    /// The handshake of AMQP 0-9-1 (section 2.2.4 of its specification), and a channel.
    async fn open(&mut self, uri: &AMQPUri) -> Result<(), BrokerError> {
        use connection::AMQPMethod::{Open, OpenOk, Start, StartOk, Tune, TuneOk};
        self.send(&AMQPFrame::ProtocolHeader(ProtocolVersion::amqp_0_9_1())).await?;
        let AMQPClass::Connection(Start(start)) = self.method().await? else {
            return Err(out_of_turn());
        };
        let version = header_text(&start.server_properties, "version");
        self.server_version = version.unwrap_or_default();
        let mechanism = uri.query.auth_mechanism.unwrap_or_default();
        let mut client_properties = FieldTable::default();
        let name = AMQPValue::LongString("floodgate reader".into());
        client_properties.insert("connection_name".into(), name);
        let start_ok = connection::StartOk {
            client_properties,
            mechanism: mechanism.to_string().into(),
            response: Credentials::from(uri.authority.userinfo.clone()).sasl_auth_string(mechanism),
            locale: "en_US".into(),
        };
        let answer = self.call(0, AMQPClass::Connection(StartOk(start_ok))).await?;
        let AMQPClass::Connection(Tune(tune)) = answer else { return Err(out_of_turn()) };
        self.frame_max = tune.frame_max as usize;
        // Without heartbeats: every answer has its time limit.
        let tune_ok = connection::TuneOk {
            channel_max: tune.channel_max,
            frame_max: tune.frame_max,
            heartbeat: 0,
        };
        self.send(&AMQPFrame::Method(0, AMQPClass::Connection(TuneOk(tune_ok)))).await?;
        let open = connection::Open { virtual_host: uri.vhost.as_str().into() };
        let answer = self.call(0, AMQPClass::Connection(Open(open))).await?;
        let AMQPClass::Connection(OpenOk(_)) = answer else { return Err(out_of_turn()) };
        let open = channel::AMQPMethod::Open(channel::Open {});
        match self.call(CHANNEL, AMQPClass::Channel(open)).await? {
            AMQPClass::Channel(channel::AMQPMethod::OpenOk(_)) => Ok(()),
            _ => Err(out_of_turn()),
        }
    }

    /// Takes the message at the head of `queue`, if there is one.
    pub(super) async fn take(&mut self, queue: &str) -> Result<Option<Taken>, BrokerError> {
        let get = basic::Get { queue: queue.into(), no_ack: false };
        let get = AMQPClass::Basic(basic::AMQPMethod::Get(get));
        let message = match self.call(CHANNEL, get).await? {
            AMQPClass::Basic(basic::AMQPMethod::GetOk(message)) => message,
            AMQPClass::Basic(basic::AMQPMethod::GetEmpty(_)) => return Ok(None),
            _ => return Err(out_of_turn()),
        };
        let (AMQPFrame::Header(_, header), properties_bytes) = self.frame().await? else {
            return Err(out_of_turn());
        };
        let mut body = Vec::new();
        while (body.len() as u64) < header.body_size {
            match self.frame().await? {
                (AMQPFrame::Body(_, part), _) => body.extend(part),
                _ => return Err(out_of_turn()),
            }
        }
        Ok(Some(Taken {
            tag: message.delivery_tag,
            routing_key: message.routing_key.to_string(),
            properties: header.properties,
            properties_bytes,
            body,
        }))
    }

    /// Acknowledges a message that was taken.
    pub(super) async fn ack(&mut self, tag: u64) -> Result<(), BrokerError> {
        let ack = basic::AMQPMethod::Ack(basic::Ack { delivery_tag: tag, multiple: false });
        self.send(&AMQPFrame::Method(CHANNEL, AMQPClass::Basic(ack))).await
    }

    /// Ends in order, so that what was acknowledged is known to have arrived.
    pub(super) async fn close(mut self) -> Result<(), BrokerError> {
        let close = connection::Close {
            reply_code: 200,
            reply_text: "done".into(),
            class_id: 0,
            method_id: 0,
        };
        let close = connection::AMQPMethod::Close(close);
        self.call(0, AMQPClass::Connection(close)).await.map(drop)
    }

    async fn call(&mut self, channel: u16, method: AMQPClass) -> Result<AMQPClass, BrokerError> {
        self.send(&AMQPFrame::Method(channel, method)).await?;
        self.method().await
    }

    async fn send(&mut self, frame: &AMQPFrame) -> Result<(), BrokerError> {
        let written = gen_frame(frame)(Vec::new().into()).map_err(failed)?;
        let (bytes, _) = written.into_inner();
        let sending = async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        };
        tokio::time::timeout(self.timeout, sending).await.map_err(failed)?.map_err(failed)
    }

    /// The next method, unless it ends the connection or the channel.
    async fn method(&mut self) -> Result<AMQPClass, BrokerError> {
        let (reply_code, reply_text) = match self.frame().await?.0 {
            AMQPFrame::Method(_, AMQPClass::Connection(connection::AMQPMethod::Close(close))) => {
                (close.reply_code, close.reply_text)
            }
            AMQPFrame::Method(_, AMQPClass::Channel(channel::AMQPMethod::Close(close))) => {
                (close.reply_code, close.reply_text)
            }
            AMQPFrame::Method(_, method) => return Ok(method),
            _ => return Err(out_of_turn()),
        };
        Err(BrokerError::Transient(format!("{reply_code} {reply_text}").into()))
    }

    /// The next frame that is no heartbeat, and its length in bytes.
    async fn frame(&mut self) -> Result<(AMQPFrame, usize), BrokerError> {
        loop {
            let parsed = match parse_frame(self.came.as_slice()) {
                Ok((rest, frame)) => Some((frame, self.came.len() - rest.len())),
                Err(error) if error.is_incomplete() => None,
                Err(_) => return Err(out_of_turn()),
            };
            match parsed {
                Some((frame, length)) => {
                    self.came.drain(..length);
                    if frame != AMQPFrame::Heartbeat {
                        return Ok((frame, length));
                    }
                }
                None if self.came.len() > MAX_FRAME_BYTES => return Err(out_of_turn()),
                None => self.read().await?,
            }
        }
    }

    async fn read(&mut self) -> Result<(), BrokerError> {
        let mut chunk = vec![0; CHUNK];
        let reading = tokio::time::timeout(self.timeout, self.stream.read(&mut chunk));
        match reading.await.map_err(failed)?.map_err(failed)? {
            0 => Err(BrokerError::Transient("the broker closed the connection".into())),
            length => {
                self.came.extend_from_slice(&chunk[..length]);
                Ok(())
            }
        }
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> BrokerError {
    BrokerError::Transient(Box::new(error))
}

fn out_of_turn() -> BrokerError {
    BrokerError::Transient("the broker sent something that was not expected here".into())
}

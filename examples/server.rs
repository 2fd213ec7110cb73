//! A key-value server over TCP, and clients that load it and check every answer.
//!
//! `server [CLIENTS [REQUESTS]]`: so many clients at once, so many requests each. Both ends run in this process, on a free
//! port of the loopback interface. A request is one line, and so is its answer:
//!
//! | request | answer |
//! |---|---|
//! | `GET key` | `VALUE value` or `NONE` |
//! | `SET key value` | `OK` |
//! | `DEL key` | `OK` or `NONE` |
//! | `ECHO text` | `VALUE text` |
//! | anything else | `ERROR` and the reason |
//!
//! What was asked and answered goes to stdout and is the same on every run that was not cut short by the time limit; the
//! time and the latencies go to stderr. Built with `--cfg system_alloc`, it runs on the system's allocator instead.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

#[cfg(not(system_alloc))]
#[global_allocator]
static GLOBAL: nearheap::NearHeap = nearheap::NearHeap::new();

const DEFAULT_CLIENTS: u64 = 32;
const DEFAULT_REQUESTS: u64 = 4_000;
const MAX_CLIENTS: u64 = 1_000;
const MAX_REQUESTS: u64 = 1_000_000;
/// Clients send nothing more after this, whatever they were asked for.
const LOAD_LIMIT: Duration = Duration::from_secs(30);
/// A client that waits this long for an answer gives up.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// A longer line ends the connection, so that no client can make the server hold more.
const MAX_LINE_BYTES: usize = 64 * 1024;
const MAX_VALUE_BYTES: u64 = 2_000;
/// Keys that one client writes to. Its keys are its own, so it knows what each of them must hold.
const KEYS_PER_CLIENT: u64 = 100;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("server: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let clients = number(arguments.next(), DEFAULT_CLIENTS, MAX_CLIENTS)?;
    let requests = number(arguments.next(), DEFAULT_REQUESTS, MAX_REQUESTS)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let start = Instant::now();
    let (report, store) = runtime.block_on(serve_and_load(clients, requests))?;
    print_report(report, &store, start.elapsed())?;
    Ok(())
}

fn number(argument: Option<String>, default: u64, max: u64) -> Result<u64, String> {
    let Some(text) = argument else { return Ok(default) };
    let number = text.parse().ok().filter(|number| (1..=max).contains(number));
    number.ok_or_else(|| format!("{text}: not a number from 1 to {max}"))
}

async fn serve_and_load(clients: u64, requests: u64) -> Result<(Report, Arc<Store>), Failure> {
    let store = Arc::new(Store::default());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let server = tokio::spawn(serve(listener, Arc::clone(&store)));
    let deadline = Instant::now() + LOAD_LIMIT;
    let load: Vec<_> = (0..clients)
        .map(|client| tokio::spawn(load(address, client, requests, deadline)))
        .collect();
    let mut report = Report::default();
    for client in load {
        report.merge(client.await??);
    }
    server.abort();
    Ok((report, store))
}

// The server.

/// What the server keeps. A lock over all of it is enough here: it is held for one operation on the map.
#[derive(Default)]
struct Store {
    values: Mutex<HashMap<String, String>>,
}

impl Store {
    fn answer(&self, line: &str) -> String {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        if verb == "ECHO" {
            return format!("VALUE {rest}");
        }
        let (key, value) = match rest.split_once(' ') {
            Some((key, value)) => (key, Some(value)),
            None => (rest, None),
        };
        if key.is_empty() {
            return "ERROR a key is missing, or the request is unknown".to_owned();
        }
        // A panic elsewhere cannot leave a map half changed that is only changed by single operations.
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        match (verb, value) {
            ("GET", None) => {
                values.get(key).map_or("NONE".to_owned(), |value| format!("VALUE {value}"))
            }
            ("SET", Some(value)) => {
                values.insert(key.to_owned(), value.to_owned());
                "OK".to_owned()
            }
            ("DEL", None) => values.remove(key).map_or("NONE", |_| "OK").to_owned(),
            _ => format!("ERROR {verb}: unknown, or not used like this"),
        }
    }

    /// How many keys are held, and how many bytes of values.
    fn size(&self) -> (usize, usize) {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        (values.len(), values.values().map(String::len).sum())
    }
}

async fn serve(listener: TcpListener, store: Arc<Store>) -> io::Result<()> {
    loop {
        let (stream, peer) = listener.accept().await?;
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            if let Err(error) = serve_connection(stream, &store).await {
                eprintln!("server: {peer}: {error}");
            }
        });
    }
}

async fn serve_connection(stream: TcpStream, store: &Store) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    while let Some(line) = read_line(&mut stream).await? {
        let mut answer = store.answer(&line);
        answer.push('\n');
        stream.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}

/// The next line without its end, or `None` when the other side is done.
async fn read_line(stream: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut line = String::new();
    let read = stream.take(MAX_LINE_BYTES as u64).read_line(&mut line).await?;
    if line.pop() == Some('\n') {
        return Ok(Some(line));
    }
    match read {
        0 => Ok(None),
        MAX_LINE_BYTES => Err(io::Error::new(io::ErrorKind::InvalidData, "the line is too long")),
        _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the last line has no end")),
    }
}

// The load.

/// What one client, and at last all of them, did.
#[derive(Default)]
struct Report {
    gets: u64,
    sets: u64,
    dels: u64,
    echos: u64,
    latencies: Vec<Duration>,
    stopped_by_time: bool,
}

impl Report {
    fn merge(&mut self, other: Report) {
        self.gets += other.gets;
        self.sets += other.sets;
        self.dels += other.dels;
        self.echos += other.echos;
        self.latencies.extend(other.latencies);
        self.stopped_by_time |= other.stopped_by_time;
    }
}

/// A client that knows what the server should hold under its keys, and so what it should answer.
struct Client {
    name: u64,
    random: u64,
    expected: HashMap<String, String>,
    report: Report,
}

impl Client {
    fn new(name: u64) -> Self {
        // Any seed but zero will do; the product keeps those of neighbouring clients apart.
        let random = (name + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { name, random, expected: HashMap::new(), report: Report::default() }
    }

    /// Marsaglia's xorshift, reduced to a number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) % limit
    }

    fn text(&mut self) -> String {
        // Most values are short, and some are long.
        let limit = 1 + (MAX_VALUE_BYTES >> self.below(8));
        let length = 1 + self.below(limit);
        (0..length).map(|_| char::from(b'!' + self.below(90) as u8)).collect()
    }

    /// The next request, and the answer that it must get: of ten, four GET, four SET, one DEL, one ECHO.
    fn next_request(&mut self) -> (String, String) {
        let number = self.below(KEYS_PER_CLIENT);
        let key = format!("client{}:key{number}", self.name);
        // The verb comes from a draw of its own, so that it does not hang together with the key.
        match self.below(10) {
            0..4 => {
                self.report.gets += 1;
                let answer = self.expected.get(&key).map(|value| format!("VALUE {value}"));
                (format!("GET {key}"), answer.unwrap_or("NONE".to_owned()))
            }
            4..8 => {
                self.report.sets += 1;
                let value = self.text();
                let request = format!("SET {key} {value}");
                self.expected.insert(key, value);
                (request, "OK".to_owned())
            }
            8 => {
                self.report.dels += 1;
                let answer = self.expected.remove(&key).map_or("NONE", |_| "OK");
                (format!("DEL {key}"), answer.to_owned())
            }
            _ => {
                self.report.echos += 1;
                let text = self.text();
                (format!("ECHO {text}"), format!("VALUE {text}"))
            }
        }
    }
}

async fn load(
    address: SocketAddr,
    name: u64,
    requests: u64,
    deadline: Instant,
) -> Result<Report, Failure> {
    let mut client = Client::new(name);
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    for _ in 0..requests {
        let sent = Instant::now();
        if sent >= deadline {
            client.report.stopped_by_time = true;
            break;
        }
        let (request, expected) = client.next_request();
        let answer = tokio::time::timeout(ANSWER_LIMIT, ask(&mut stream, &request)).await;
        let answer =
            answer.map_err(|_| format!("{request}: no answer within {ANSWER_LIMIT:?}"))??;
        client.report.latencies.push(sent.elapsed());
        if answer != expected {
            return Err(format!("{request}: the answer is {answer:?}, not {expected:?}").into());
        }
    }
    Ok(client.report)
}

async fn ask(stream: &mut BufReader<TcpStream>, request: &str) -> io::Result<String> {
    stream.write_all(format!("{request}\n").as_bytes()).await?;
    let answer = read_line(stream).await?;
    answer.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the server hung up"))
}

fn print_report(mut report: Report, store: &Store, elapsed: Duration) -> io::Result<()> {
    let done = report.latencies.len();
    let Report { gets, sets, dels, echos, .. } = report;
    let (keys, bytes) = store.size();
    let mut out = io::stdout().lock();
    if report.stopped_by_time {
        writeln!(out, "stopped after {} s, before all requests were sent", LOAD_LIMIT.as_secs())?;
    }
    writeln!(
        out,
        "{done} requests, every answer right: {gets} GET, {sets} SET, {dels} DEL, {echos} ECHO"
    )?;
    writeln!(out, "{keys} keys left, with {bytes} bytes of values")?;
    report.latencies.sort_unstable();
    for (name, thousandths) in [("p50", 500), ("p90", 900), ("p99", 990), ("p99.9", 999)] {
        let rank = (done * thousandths).div_ceil(1_000);
        let latency = report.latencies.get(rank.saturating_sub(1)).copied().unwrap_or_default();
        eprintln!("{name:>6} {:>8.1} us", latency.as_secs_f64() * 1e6);
    }
    eprintln!(
        "{done} requests in {:.2} s, {:.0} a second",
        elapsed.as_secs_f64(),
        done as f64 / elapsed.as_secs_f64()
    );
    Ok(())
}

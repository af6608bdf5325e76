//! Chromium, headless, on a page that this process serves: one question, one answer.
//!
//! A server of a few lines on 127.0.0.1 (which browsers count as a secure context, as WebGPU
//! wants) hands out the page and the question, and takes the answer when the page posts it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use serde_json::Value;

const PAGE: &str = include_str!("page.html");
const PATIENCE: Duration = Duration::from_secs(600);

/// Lets `page.html` answer `question`.
pub(crate) fn ask(question: &Value) -> Value {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("the port's number");
    let question = question.to_string();
    let (answer, answered) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A browser may close a connection as it likes.
            let _ = serve(stream, &question, &answer);
        }
    });
    let profile = tempfile::tempdir().expect("a temporary folder");
    let log = profile.path().join("stderr");
    let browser = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("http://{address}/"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).expect("a temporary file"))
        .spawn()
        .expect("chromium starts; `make test-chromium` installs it (Debian's package chromium)");
    let _browser = KilledAtTheEnd(browser);
    let text = answered.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        let words = std::fs::read_to_string(&log).unwrap_or_default();
        panic!("no answer from chromium in {PATIENCE:?}; it said:\n{words}")
    });
    let answer: Value = serde_json::from_str(&text).expect("the page posts JSON");
    assert!(answer["error"].is_null(), "the page failed: {}", answer["error"]);
    answer
}

struct KilledAtTheEnd(Child);

impl Drop for KilledAtTheEnd {
    fn drop(&mut self) {
        // Its helper processes follow when their pipes close.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(stream: TcpStream, question: &str, answer: &Sender<String>) -> std::io::Result<()> {
    let mut reader = BufReader::new(&stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim().to_lowercase().split_once(':') {
            Some(("content-length", n)) => length = n.trim().parse().unwrap_or(0),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let (status, kind, text) = match request.split(' ').nth(1) {
        Some("/") => ("200 OK", "text/html", PAGE),
        Some("/question") => ("200 OK", "application/json", question),
        Some("/answer") => {
            let _ = answer.send(String::from_utf8_lossy(&body).into_owned());
            ("200 OK", "text/plain", "")
        }
        _ => ("404 Not Found", "text/plain", ""),
    };
    write!(
        &stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    )
}

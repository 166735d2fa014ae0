//! Closed-loop load over HTTP: so many clients, each of which sends its next request when the last one is answered.
//!
//! `cargo bench --bench serve -- --model NAME=DIR --clients 1,16 --json FILE` starts the server that was built with it
//! and ends it; `--url` asks one that runs already, `--predict` a foreign one that takes the picture as the body of
//! `POST /predict`. Pictures are made before the clock starts. Each row has a warm-up of its own; what is answered
//! within the time behind it counts.
//!
//! One thread, one connection a client, no TLS, answers thrown away: the machine's cores belong to the server. What the
//! generator took of them is printed beside what the server took.
//!
//! Nothing is measured by `cargo test`: only `cargo bench` passes `--bench`.

#[path = "serve/arguments.rs"]
mod arguments;
#[path = "serve/load.rs"]
mod load;
#[path = "serve/pictures.rs"]
mod pictures;
#[path = "serve/process.rs"]
mod process;
#[path = "serve/report.rs"]
mod report;

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::rc::Rc;

use anyhow::Context;
use clap::Parser;

use arguments::{Arguments, Case};
use load::{Load, Window};
use pictures::Pictures;
use process::{Server, Usage};
use report::{Costs, Report, Row};

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if !arguments.bench {
        writeln!(std::io::stderr(), "serve measures under `cargo bench --bench serve` only")?;
        return Ok(());
    }
    let (width, height) = (arguments.width, arguments.height);
    let pictures = Rc::new(Pictures::make(width, height).context("cannot make pictures")?);
    writeln!(
        std::io::stderr(),
        "pictures of {width} x {height}, {} KB in the mean",
        pictures.mean_bytes() / 1000
    )?;
    let server = match arguments.url {
        Some(_) => None,
        None => Some(Server::start(&arguments).context("cannot start the server")?),
    };
    let address = match (&server, &arguments.url) {
        (Some(server), _) => server.address(),
        (None, url) => address_of(url.as_deref().unwrap_or_default())?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut report = Report::new(&pictures, &arguments);
    for case in arguments.cases() {
        let load = Load {
            address,
            target: case.endpoint.target(arguments.tokens),
            pictures: Rc::clone(&pictures),
            images: case.images,
            clients: case.clients,
        };
        let row = runtime.block_on(measure(case, &arguments, load, server.as_ref()))?;
        print(&arguments, &row.line(report.rows.is_empty()))?;
        report.rows.push(row);
    }
    report.write(arguments.json.as_deref())
}

/// Measures one row on a server that is ready.
async fn measure(
    case: Case,
    arguments: &Arguments,
    load: Load,
    server: Option<&Server>,
) -> anyhow::Result<Row> {
    let window = Window {
        warm_up: arguments.warm_up(),
        length: arguments.window(),
        requests: arguments.requests,
    };
    let usage = || (Usage::of_this_process(), server.and_then(Server::usage));
    let (measured, before, after) = load.run(window, usage).await?;
    let took = |before: Option<Usage>, after: Option<Usage>| Some(after?.cpu - before?.cpu);
    let costs = Costs {
        load_generator_cpu_seconds: took(before.0, after.0),
        server_cpu_seconds: took(before.1, after.1),
        server_peak_bytes: after.1.map(|usage| usage.peak_bytes),
    };
    Ok(Row::new(case, measured, costs))
}

/// Where a URL without a path leads.
fn address_of(url: &str) -> anyhow::Result<SocketAddr> {
    let host = url.strip_prefix("http://").context("--url starts with http://")?;
    let host = host.trim_end_matches('/');
    let host = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut addresses = host.to_socket_addrs().with_context(|| format!("{host} is no address"))?;
    addresses.next().with_context(|| format!("{host} has no address"))
}

/// To standard output, unless the JSON goes there.
fn print(arguments: &Arguments, text: &str) -> anyhow::Result<()> {
    if arguments.json.as_deref() == Some("-") {
        return Ok(std::io::stderr().write_all(text.as_bytes())?);
    }
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

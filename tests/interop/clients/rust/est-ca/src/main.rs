//! est-ca's client: one operation a run, arguments as name=value, files in PEM.
//!
//! operation, url, ca, csr, out, tls, user, password, certificate, key. It knows no labels, csrattrs
//! or serverkeygen, and returns the first certificate of an answer only. Exit code 1: the error is on
//! stderr.

use std::collections::HashMap;
use std::error::Error;
use std::fs;

use base64::{engine::general_purpose::STANDARD, Engine as _};
use est_ca::est::client;
use reqwest::tls::Version;
use reqwest::{Certificate, Client, Identity};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() {
    let given: HashMap<String, String> = std::env::args()
        .skip(1)
        .filter_map(|argument| {
            argument.split_once('=').map(|(name, value)| (name.to_string(), value.to_string()))
        })
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    if let Err(error) = runtime.block_on(run(&given)) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

async fn run(given: &HashMap<String, String>) -> Outcome<()> {
    let http = http(given)?;
    let url = &given["url"];
    let der = match given["operation"].as_str() {
        "cacerts" => client::cacerts(&http, url).await?,
        "simpleenroll" => {
            let (user, password) = (&given["user"], &given["password"]);
            client::simpleenroll(&http, url, user, password, &csr(given)?).await?
        }
        "simplereenroll" => client::simplereenroll(&http, url, &csr(given)?).await?,
        other => return Err(format!("no operation {other}").into()),
    };
    let body = STANDARD.encode(der);
    fs::write(&given["out"], format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"))?;
    Ok(())
}

fn http(given: &HashMap<String, String>) -> Outcome<Client> {
    let mut builder = Client::builder()
        .tls_built_in_root_certs(false)
        .add_root_certificate(Certificate::from_pem(&fs::read(&given["ca"])?)?);
    // native-tls cannot demand TLS 1.3; without a limit it is what is negotiated.
    if given.get("tls").is_some_and(|version| version == "1.2") {
        builder = builder.max_tls_version(Version::TLS_1_2);
    }
    if let Some(certificate) = given.get("certificate") {
        let identity = Identity::from_pkcs8_pem(&fs::read(certificate)?, &fs::read(&given["key"])?)?;
        builder = builder.identity(identity);
    }
    Ok(builder.build()?)
}

fn csr(given: &HashMap<String, String>) -> Outcome<Vec<u8>> {
    let text = fs::read_to_string(&given["csr"])?;
    let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
    Ok(STANDARD.decode(body)?)
}

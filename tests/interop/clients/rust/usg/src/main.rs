//! usg-est-client: one operation a run, arguments as name=value, files in PEM.
//!
//! operation, url, label, ca, csr, out, key-out, user, password, certificate, key. Certificates go to
//! `out`, of csrattrs the object identifiers, one a line. Exit code 1: the client's error is on stderr.

use std::collections::HashMap;
use std::error::Error;
use std::fs;

use base64::{engine::general_purpose::STANDARD, Engine as _};
use usg_est_client::{ClientIdentity, EnrollmentResponse, EstClient, EstClientConfig};
use x509_cert::der::Encode;
use x509_cert::Certificate;

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
    let client = EstClient::new(config(given)?).await?;
    let text = match given["operation"].as_str() {
        "cacerts" => pem(client.get_ca_certs().await?.iter())?,
        "csrattrs" => {
            let attributes = client.get_csr_attributes().await?;
            attributes.attributes.iter().map(|found| format!("{}\n", found.oid)).collect()
        }
        "simpleenroll" => issued(client.simple_enroll(&csr(given)?).await?)?,
        "simplereenroll" => issued(client.simple_reenroll(&csr(given)?).await?)?,
        "serverkeygen" => {
            let made = client.server_keygen(&csr(given)?).await?;
            fs::write(&given["key-out"], armoured("PRIVATE KEY", &made.private_key))?;
            pem([&made.certificate].into_iter())?
        }
        other => return Err(format!("no operation {other}").into()),
    };
    fs::write(&given["out"], text)?;
    Ok(())
}

fn config(given: &HashMap<String, String>) -> Outcome<EstClientConfig> {
    let mut builder = EstClientConfig::builder()
        .server_url(&given["url"])?
        .trust_explicit(vec![fs::read(&given["ca"])?]);
    if let Some(label) = given.get("label") {
        builder = builder.ca_label(label);
    }
    if let Some(user) = given.get("user") {
        builder = builder.http_auth(user, &given["password"]);
    }
    if let Some(certificate) = given.get("certificate") {
        builder = builder.client_identity(ClientIdentity::from_files(certificate, &given["key"])?);
    }
    Ok(builder.build()?)
}

fn csr(given: &HashMap<String, String>) -> Outcome<Vec<u8>> {
    let text = fs::read_to_string(&given["csr"])?;
    let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
    Ok(STANDARD.decode(body)?)
}

fn issued(response: EnrollmentResponse) -> Outcome<String> {
    match response {
        EnrollmentResponse::Issued { certificate } => pem([certificate.as_ref()].into_iter()),
        other => Err(format!("{other:?}").into()),
    }
}

fn pem<'a>(certificates: impl Iterator<Item = &'a Certificate>) -> Outcome<String> {
    let mut text = String::new();
    for certificate in certificates {
        text.push_str(&armoured("CERTIFICATE", &certificate.to_der()?));
    }
    Ok(text)
}

fn armoured(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

//! HTTP: what a server gives as a stream (`GET`), and what it takes as one (`PUT`).

use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cowhand_core::{Error, ErrorKind, Result};
use ureq::config::RedirectAuthHeaders;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, SendBody};

use super::{Deliver, Incoming};

/// How servers are talked to. The names of servers come from the caller, never from an image.
#[derive(Clone)]
pub struct Http {
    /// `NAME:PASSWORD` for basic authentication; the URL's own counts where there is none.
    pub user: Option<String>,
    /// Further headers, as `Name: value`.
    pub headers: Vec<String>,
    /// The certificates to trust in place of the public authorities', in PEM.
    pub cacert: Option<PathBuf>,
    /// Talk to whoever answers, without looking at the certificate.
    pub insecure: bool,
    /// How long a server may be silent.
    pub timeout: Duration,
}

impl Default for Http {
    fn default() -> Http {
        Http {
            user: None,
            headers: Vec::new(),
            cacert: None,
            insecure: false,
            timeout: Duration::from_secs(300),
        }
    }
}

impl fmt::Debug for Http {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Http { cacert, insecure, timeout, .. } = self;
        write!(f, "Http {{ cacert: {cacert:?}, insecure: {insecure}, timeout: {timeout:?} }}")
    }
}

/// Longest part of an answer that is looked at for what the server has to say.
const SAID: u64 = 4096;
/// Longest part of that which is printed, in characters.
const SHOWN: usize = 200;
/// Bytes that go to the server at a time.
const BUFFER: usize = 256 << 10;

impl Http {
    /// True for what is to be fetched from or sent to a server.
    pub fn is_url(word: &str) -> bool {
        scheme(word).is_some()
    }

    /// Asks for `url`. Redirects are followed, from https to https only, and not with further headers.
    pub fn get(&self, url: &str) -> Result<Incoming> {
        let url = Url::parse(url, self)?;
        // What a header holds may be a secret, and is for nobody but the server that was named.
        let redirects = if self.headers.is_empty() { 10 } else { 0 };
        let agent = self.agent(&url, redirects)?;
        let mut request = agent.get(&url.bare);
        for (name, value) in self.headers(&url)? {
            request = request.header(name, value);
        }
        let answer = request.call().map_err(|error| url.failed("cannot get it", error))?;
        let answer = url.expect_success(answer)?;
        if answer.headers().get("content-encoding").is_some_and(|coding| coding != "identity") {
            return Err(Error::unsupported("the server sends it in a coding that was not asked for")
                .image(&url.shown));
        }
        let len = match answer.headers().get("content-length") {
            Some(text) => Some(
                text.to_str()
                    .ok()
                    .and_then(|text| text.trim().parse().ok())
                    .ok_or_else(|| Error::corrupt("Content-Length", "is not a number").image(&url.shown))?,
            ),
            None => None,
        };
        Ok(Incoming { name: url.shown, len, bytes: Box::new(answer.into_body().into_reader()) })
    }

    /// Makes ready to send something to `url`.
    pub fn put(&self, url: &str) -> Result<Put> {
        let url = Url::parse(url, self)?;
        let agent = self.agent(&url, 0)?;
        let headers = self.headers(&url)?;
        Ok(Put { agent, url, headers })
    }

    fn agent(&self, url: &Url, redirects: u32) -> Result<Agent> {
        let roots = match &self.cacert {
            None => RootCerts::WebPki,
            Some(path) => {
                let pem = std::fs::read(path)
                    .map_err(|error| Error::io("cannot read", error).image(path.display()))?;
                let certificates: Vec<_> = parse_pem(&pem)
                    .filter_map(|item| match item {
                        Ok(PemItem::Certificate(certificate)) => Some(certificate),
                        _ => None,
                    })
                    .collect();
                if certificates.is_empty() {
                    return Err(Error::invalid("holds no certificate in PEM").image(path.display()));
                }
                RootCerts::from(certificates)
            }
        };
        let tls = TlsConfig::builder().root_certs(roots).disable_verification(self.insecure).build();
        let connect = self.timeout.min(Duration::from_secs(30));
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(url.tls)
            .tls_config(tls)
            .max_redirects(redirects)
            .max_redirects_will_error(redirects > 0)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("cowhand/", env!("CARGO_PKG_VERSION")))
            .output_buffer_size(BUFFER)
            .timeout_resolve(Some(connect))
            .timeout_connect(Some(connect))
            .timeout_per_read(Some(self.timeout))
            .timeout_per_write(Some(self.timeout))
            .build();
        Ok(config.new_agent())
    }

    fn headers(&self, url: &Url) -> Result<Vec<(String, String)>> {
        let mut headers = Vec::new();
        for header in &self.headers {
            let (name, value) = header
                .split_once(':')
                .ok_or_else(|| Error::invalid("a header has no colon").hint("write it as 'Name: value'"))?;
            headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
        if let Some(user) = &url.user {
            headers.push(("Authorization".to_owned(), format!("Basic {}", BASE64_STANDARD.encode(user))));
        }
        Ok(headers)
    }
}

/// A server that is about to be sent something. It is sent once: who has taken part of it is not asked again.
pub struct Put {
    agent: Agent,
    url: Url,
    headers: Vec<(String, String)>,
}

impl fmt::Debug for Put {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Put {{ {} }}", self.url.shown)
    }
}

impl Deliver for Put {
    fn name(&self) -> &str {
        &self.url.shown
    }

    /// With its exact length where that is known, in HTTP's chunks otherwise. Waits a second for the server's word
    /// that it wants the body, so that one who refuses says why.
    fn deliver(&mut self, mut body: &mut dyn Read, len: Option<u64>) -> Result<()> {
        let mut request = self.agent.put(&self.url.bare).header("Expect", "100-continue");
        request = request.header("Content-Type", "application/octet-stream");
        if let Some(len) = len {
            request = request.header("Content-Length", len.to_string());
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let answer = request
            .send(SendBody::from_reader(&mut body))
            .map_err(|error| self.url.failed("cannot send it", error))?;
        self.url.expect_success(answer).map(|_| ())
    }
}

/// An address, what of it may be printed, and what may not.
struct Url {
    /// Without name and password.
    bare: String,
    /// Without the query too.
    shown: String,
    tls: bool,
    user: Option<String>,
    /// Never to be printed, longest first.
    secrets: Vec<String>,
}

fn scheme(word: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = word.split_once("://")?;
    ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)).then_some((scheme, rest))
}

impl Url {
    fn parse(text: &str, how: &Http) -> Result<Url> {
        let (scheme, rest) = scheme(text)
            .ok_or_else(|| Error::invalid("is no address that begins with http:// or https://"))?;
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(unescaped(user)), host),
            None => (None, authority),
        };
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let shown = format!("{scheme}://{host}{path}");
        if host.is_empty() {
            return Err(Error::invalid("names no server").image(shown));
        }
        let user = how.user.clone().or(user);
        let mut secrets: Vec<String> = Vec::new();
        for value in query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')) {
            secrets.extend([value.1.to_owned(), unescaped(value.1)]);
        }
        secrets.extend(user.iter().flat_map(|user| user.split_once(':')).map(|(_, word)| word.to_owned()));
        secrets.extend(
            how.headers.iter().filter_map(|header| Some(header.split_once(':')?.1.trim().to_owned())),
        );
        // What is that short is in every other word, and no secret.
        secrets.retain(|secret| secret.len() > 3);
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        Ok(Url {
            bare: format!("{shown}{query}"),
            shown,
            tls: scheme.eq_ignore_ascii_case("https"),
            user,
            secrets,
        })
    }

    /// What a server or a library said, without what may not be printed.
    fn scrubbed(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
    }

    fn failed(&self, doing: &str, error: ureq::Error) -> Error {
        let said = |kind, what: &str| Error::new(kind, format!("{doing}: {what}"));
        let distrusted = |what: &str| {
            said(ErrorKind::Denied, &self.scrubbed(what))
                .hint("--cacert FILE names whom to trust; --insecure trusts whoever answers")
        };
        let error = match error {
            // What the handshake found.
            ureq::Error::Io(error) if self.tls && error.kind() == std::io::ErrorKind::InvalidData => {
                distrusted(&error.to_string())
            }
            ureq::Error::Rustls(error) => distrusted(&error.to_string()),
            ureq::Error::Io(error) if hung_up(&error) => Error::io(doing, error)
                .hint("the server closed the connection; what it keeps of its doings may say why"),
            ureq::Error::Io(error) => Error::io(doing, error),
            ureq::Error::HostNotFound => {
                said(ErrorKind::NotFound, "there is no server of that name").hint("look at how it is spelt")
            }
            ureq::Error::Timeout(_) => {
                said(ErrorKind::Io, "the server was silent for too long").hint("--timeout waits longer")
            }
            ureq::Error::RequireHttpsOnly(_) => {
                said(ErrorKind::Denied, "the server redirects to a place without encryption")
            }
            ureq::Error::TooManyRedirects => said(ErrorKind::Io, "the server redirects without end"),
            other => said(ErrorKind::Io, &self.scrubbed(&other.to_string())),
        };
        error.image(&self.shown)
    }

    /// Errors: what the server says instead.
    fn expect_success(
        &self,
        answer: ureq::http::Response<ureq::Body>,
    ) -> Result<ureq::http::Response<ureq::Body>> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let kind = match status.as_u16() {
            401 | 403 | 407 => ErrorKind::Denied,
            404 | 410 => ErrorKind::NotFound,
            409 => ErrorKind::Exists,
            423 => ErrorKind::Locked,
            413 | 507 => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        let mut text = Vec::new();
        // That it says nothing is no other error.
        let _ = answer.into_body().into_reader().take(SAID).read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        let line: String = self.scrubbed(line).chars().take(SHOWN).collect();
        let reason = status.canonical_reason().map(|reason| format!(" {reason}")).unwrap_or_default();
        let colon = if line.is_empty() { "" } else { ": " };
        let error = Error::new(kind, format!("the server answers {}{reason}{colon}{line}", status.as_u16()));
        let error = if status.is_redirection() {
            error.hint("what is sent follows no redirect, nor does a header: name the place itself")
        } else {
            error
        };
        Err(error.image(&self.shown))
    }
}

/// The other side wanted no more, and its answer was lost with the connection.
fn hung_up(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
}

/// `%41` is `A`. What is no such thing stays.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let escaped = digits.filter(|_| *first == b'%').and_then(|two| u8::from_str_radix(two, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = behind.get(if escaped.is_some() { 2 } else { 0 }..).unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_of_an_address_holds_no_secret() {
        let how = Http { headers: vec!["X-Auth-Token: tok-en-1".to_owned()], ..Http::default() };
        let url =
            Url::parse("https://root:p%40ss1@h:8443/import_raw_vdi?session_id=Opaque%3A1&vdi=abcd", &how)
                .unwrap();
        assert_eq!(url.shown, "https://h:8443/import_raw_vdi");
        assert_eq!(url.bare, "https://h:8443/import_raw_vdi?session_id=Opaque%3A1&vdi=abcd");
        assert_eq!((url.tls, url.user.as_deref()), (true, Some("root:p@ss1")));
        let said = url.scrubbed("no: Opaque:1, Opaque%3A1, p@ss1, tok-en-1");
        assert_eq!(said, "no: ***, ***, ***, ***");
        assert!(Url::parse("http:///x", &how).is_err());
        assert!(Http::is_url("HTTP://x") && !Http::is_url("./http://x") && !Http::is_url("ftp://x"));
    }
}

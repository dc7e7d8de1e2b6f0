//! Streams to and from a web server that behaves as XAPI does, and from those that misbehave.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cowhand::stream::{From, Http, Stream, To, stream};
use cowhand::{ErrorKind, Quiet};
use cowhand_tests::{Background, Content, assert_holds, qemu_img, run, temp};
use serde_json::Value;

use crate::streams::{as_format, names, to_file};

const SESSION: &str = "OpaqueRef:5e551011";

/// A web server that keeps its files in a folder, and runs until it is dropped.
pub(crate) struct Server {
    _process: Background,
    scheme: &'static str,
    port: String,
    folder: PathBuf,
}

impl Server {
    pub(crate) fn start(folder: &Path) -> Server {
        Server::with(folder, &[])
    }

    fn with(folder: &Path, certificate: &[&Path]) -> Server {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("server.py");
        let mut command = Command::new("python3");
        command.arg(program).arg(folder).args(certificate);
        let process = Background::start(&mut command, true);
        let port = process.line.trim().to_owned();
        assert!(!port.is_empty(), "the server does not run");
        let scheme = if certificate.is_empty() { "http" } else { "https" };
        Server { _process: process, scheme, port, folder: folder.to_owned() }
    }

    pub(crate) fn http(&self) -> Http {
        Http { timeout: Duration::from_secs(20), ..Http::default() }
    }

    fn url(&self, path: &str) -> String {
        format!("{}://127.0.0.1:{}{path}", self.scheme, self.port)
    }

    pub(crate) fn import(&self, name: &str, format: &str) -> String {
        let format = if format == "raw" { "raw" } else { "vhd" };
        self.url(&format!("/import_raw_vdi?session_id={SESSION}&vdi={name}&format={format}"))
    }

    pub(crate) fn export(&self, import: &str) -> String {
        import.replace("/import_raw_vdi", "/export_raw_vdi")
    }

    fn requests(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.join("requests")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// A header of the last request to that address.
    pub(crate) fn header(&self, url: &str, name: &str) -> Option<String> {
        let requests = self.requests();
        let last = requests.iter().rev().find(|request| url.ends_with(request["path"].as_str().unwrap()))?;
        let headers = last["headers"].as_object().unwrap();
        let found = headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str().unwrap().to_owned())
    }
}

/// A VHD of several megabytes in that folder, and what it holds.
fn vhd(folder: &Path) -> (PathBuf, PathBuf) {
    let raw = Content::random("disk", 6 << 20, 5).raw_in(folder);
    let vhd = folder.join("disk.vhd");
    let words = ["convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on"].map(Path::new);
    qemu_img(words.into_iter().chain([raw.as_path(), &vhd]));
    (vhd, raw)
}

fn put(server: &Server, http: &Http, path: &str, source: &Path) -> cowhand::Result<()> {
    let mut put = http.put(&server.url(path))?;
    stream(From::File(source), To::Bytes(&mut put), &as_format("vpc", "force_size=on"), &Quiet).map(|_| ())
}

#[test]
fn a_server_that_misbehaves_leaves_no_target() {
    let folder = temp();
    let elsewhere = temp();
    let (vhd, raw) = vhd(folder.path());
    let server = Server::start(folder.path());
    let target = elsewhere.path().join("target.qcow2");
    let get = |what: &str, timeout: u64| {
        let http = Http { timeout: Duration::from_secs(timeout), ..Http::default() };
        let url = server.url(&format!("/{what}?session_id={SESSION}&vdi=disk.vhd&format=vhd"));
        let incoming = http.get(&url)?;
        to_file(From::Bytes(incoming), &target, &Stream::default())
    };
    for (what, kind) in [
        ("cut", ErrorKind::Changed),
        ("too-long", ErrorKind::Mismatch),
        ("too-short", ErrorKind::Mismatch),
        ("refuse/403", ErrorKind::Denied),
        ("refuse/404", ErrorKind::NotFound),
        ("refuse/500", ErrorKind::Io),
    ] {
        let error = get(what, 20).unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(!error.to_string().contains(SESSION), "{error}");
        assert!(names(elsewhere.path()).is_empty(), "{what}: {:?}", names(elsewhere.path()));
    }
    let error = get("refuse/403", 20).unwrap_err().to_string();
    let wanted =
        format!("{}: the server answers 403 Forbidden: <h1>No session ***</h1>", server.url("/refuse/403"));
    assert_eq!(error, wanted);
    // Silence ends.
    let since = Instant::now();
    let error = get("silent", 1).unwrap_err();
    assert!(error.kind() == ErrorKind::Io && since.elapsed() < Duration::from_secs(15), "{error}");
    assert!(names(elsewhere.path()).is_empty());
    // What is fine, however the server says it.
    for what in ["export_raw_vdi", "redirect/export_raw_vdi", "no-length"] {
        get(what, 20).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_holds(&cowhand::open(&target, &cowhand::Open::default()).unwrap(), &raw);
        std::fs::remove_file(&target).unwrap();
    }
    assert!(vhd.is_file());
    // A header may hold a secret: it goes to no other place than the one that was named.
    let http = Http { headers: vec!["X-Auth-Token: s3cret".to_owned()], ..server.http() };
    let url = |what: &str| server.url(&format!("/{what}?session_id={SESSION}&vdi=disk.vhd&format=vhd"));
    http.get(&url("export_raw_vdi")).unwrap();
    let error = http.get(&url("redirect/export_raw_vdi")).unwrap_err().to_string();
    assert!(error.contains("302") && error.contains("nor does a header"), "{error}");
}

#[test]
fn a_server_that_refuses_is_heard() {
    let folder = temp();
    let raw = Content::random("disk", 6 << 20, 5).raw_in(folder.path());
    let server = Server::start(folder.path());
    let http = server.http();
    let query = format!("?session_id={SESSION}&vdi=new.vhd&format=vhd");
    for (path, kind, part) in [
        (format!("/refuse/403{query}"), ErrorKind::Denied, "403 Forbidden: <h1>No session ***</h1>"),
        (format!("/refuse/507{query}"), ErrorKind::NoSpace, "507"),
        (
            format!("/redirect/import_raw_vdi{query}"),
            ErrorKind::Io,
            "302 Found; what is sent follows no redirect, nor does a header",
        ),
        (format!("/fail-after{query}"), ErrorKind::Io, "500 Internal Server Error: VDI_IO_ERROR"),
        (
            format!("/import_raw_vdi{}", query.replace("5e55", "0bad")),
            ErrorKind::Denied,
            "401 Unauthorized: no session",
        ),
        (format!("/auth{query}"), ErrorKind::Denied, "401 Unauthorized: who are you?"),
    ] {
        let error = put(&server, &http, &path, &raw).unwrap_err();
        assert_eq!(error.kind(), kind, "{path}: {error}");
        let text = error.to_string();
        assert!(
            text.contains(part)
                && !text.contains("OpaqueRef")
                && !text.contains('?'.to_string().repeat(2).as_str()),
            "{text}"
        );
    }
    // It hangs up while it is sent something.
    for what in ["close-early", "fail-half"] {
        let error = put(&server, &http, &format!("/{what}{query}"), &raw).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Changed), "{what}: {error:?}");
    }
    // Each was asked once.
    assert_eq!(server.requests().len(), 8);
    for http in [
        Http { user: Some("root:s3cret".to_owned()), ..server.http() },
        Http { headers: vec!["Authorization: Basic cm9vdDpzM2NyZXQ=".to_owned()], ..server.http() },
    ] {
        put(&server, &http, &format!("/auth{query}"), &raw).unwrap();
    }
    let named = server.url(&format!("/auth{query}")).replace("//", "//root:s3cr%65t@");
    let mut put = server.http().put(&named).unwrap();
    stream(From::File(&raw), To::Bytes(&mut put), &Stream::default(), &Quiet).unwrap();
    let nobody = Http::default()
        .put("http://127.0.0.1:1/x")
        .and_then(|mut put| stream(From::File(&raw), To::Bytes(&mut put), &Stream::default(), &Quiet));
    assert_eq!(nobody.unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn an_archive_goes_to_a_server_and_comes_back() {
    let folder = temp();
    let raw = Content::striped("disk", 6 << 20, 100 << 10, 5).raw_in(folder.path());
    let server = Server::start(folder.path());
    let url = server.import("chain.tgz", "vpc");
    let mut put = server.http().put(&url).unwrap();
    let how = Stream { archive: true, ..as_format("vpc", "force_size=on") };
    stream(From::File(&raw), To::Bytes(&mut put), &how, &Quiet).unwrap();
    assert_eq!(server.header(&url, "Transfer-Encoding").as_deref(), Some("chunked"));
    let target = folder.path().join("back.qcow2");
    let incoming = server.http().get(&server.export(&url)).unwrap();
    to_file(From::Bytes(incoming), &target, &Stream::default()).unwrap();
    assert_holds(&cowhand::open(&target, &cowhand::Open::default()).unwrap(), &raw);
    // Out of the archive to a server that takes a VHD.
    let on = server.import("on.vhd", "vpc");
    let mut put = server.http().put(&on).unwrap();
    let archive = folder.path().join("chain.tgz");
    stream(From::File(&archive), To::Bytes(&mut put), &Stream::default(), &Quiet).unwrap();
    let len = std::fs::metadata(folder.path().join("on.vhd")).unwrap().len();
    assert_eq!(server.header(&on, "Content-Length"), Some(len.to_string()));
}

#[test]
fn whom_to_trust_is_said() {
    let folder = temp();
    let (key, certificate) = (folder.path().join("key.pem"), folder.path().join("cert.pem"));
    let mut command = Command::new("openssl");
    command.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]);
    command.args(["-subj", "/CN=xen", "-addext", "subjectAltName=IP:127.0.0.1"]);
    command
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate);
    let ran = run(&mut command);
    assert!(ran.ok(), "{}", ran.err);
    let raw = Content::random("disk", 1 << 20, 5).raw_in(folder.path());
    let server = Server::with(folder.path(), &[&certificate, &key]);
    let path = format!("/import_raw_vdi?session_id={SESSION}&vdi=new.vhd&format=vhd");
    let error = put(&server, &server.http(), &path, &raw).unwrap_err();
    assert!(error.kind() == ErrorKind::Denied && error.to_string().contains("--cacert"), "{error}");
    put(&server, &Http { insecure: true, ..server.http() }, &path, &raw).unwrap();
    put(&server, &Http { cacert: Some(certificate), ..server.http() }, &path, &raw).unwrap();
    let error = Http { cacert: Some(raw.clone()), ..server.http() }.put("https://127.0.0.1/").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

//! Certificates for servers that speak TLS.

use std::path::Path;
use std::process::Command;

/// Makes an authority (`ca.crt`), and a server's certificate and key for the loopback address (`server.crt`,
/// `server.key`), in `folder`.
pub fn make_certificates(folder: &Path) {
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1").expect("the names");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let calls = [
        format!("req -x509 {key} -keyout ca.key -out ca.crt -days 2 -subj /CN=millrace-test"),
        format!("req {key} -keyout server.key -out server.csr -subj /CN=127.0.0.1"),
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 \
         -extfile names"
            .to_owned(),
    ];
    for call in calls {
        let made = Command::new("openssl")
            .args(call.split_whitespace())
            .current_dir(folder)
            .output()
            .unwrap_or_else(|error| panic!("openssl cannot be run: {error}; install openssl"));
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "openssl {call}: {said}");
    }
}

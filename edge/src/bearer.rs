//! Bearer tokens: what a request brings, and the one token that a server of one job wants.

use std::io;
use std::path::{Path, PathBuf};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Most bytes of a token.
const TOKEN_BYTES_MAX: usize = 4_096;

/// Why there is no token. Names the file, never what is in it.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A token is empty or far too long.
    #[error("a token must have 1 to {TOKEN_BYTES_MAX} bytes")]
    Size,
}

/// A token, kept as its hash and compared in constant time.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl Token {
    /// The token in these bytes, without white space around it.
    pub fn new(bytes: &[u8]) -> Result<Self, TokenError> {
        let bytes = bytes.trim_ascii();
        match bytes.len() {
            1..=TOKEN_BYTES_MAX => Ok(Self(Sha256::digest(bytes).into())),
            _ => Err(TokenError::Size),
        }
    }

    /// The token in a file. Blocks.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let bytes = std::fs::read(path).map_err(|source| TokenError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::new(&bytes)
    }

    /// Whether a request brings this token.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        bearer(headers).is_some_and(|presented| {
            let presented: [u8; 32] = Sha256::digest(presented).into();
            self.0.ct_eq(&presented).into()
        })
    }
}

/// What follows `Authorization: Bearer`.
pub fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brings(value: &'static str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        Token::new(b" s3cret\n").unwrap().is_in(&headers)
    }

    #[test]
    fn a_token_is_the_whole_of_what_follows_bearer() {
        assert!(brings("Bearer s3cret"));
        assert!(brings("bearer s3cret"));
        for wrong in [
            "Bearer s3cre",
            "Bearer s3cret2",
            "Bearer ",
            "Basic s3cret",
            "s3cret",
        ] {
            assert!(!brings(wrong), "{wrong:?}");
        }
        let token = Token::new(b"s3cret").unwrap();
        assert!(!token.is_in(&HeaderMap::new()));
    }

    #[test]
    fn a_file_without_a_token_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        assert!(matches!(
            Token::read(&path),
            Err(TokenError::Unreadable { .. })
        ));
        std::fs::write(&path, " \n").unwrap();
        assert!(matches!(Token::read(&path), Err(TokenError::Size)));
    }
}

//! Has long texts cut into chunks by the server, which knows the tokens of its models. A text that kills
//! it is found as a row is that does.

use std::ops::Range;

use futures::{StreamExt, TryStreamExt};
use millrace_protocol::chunk::ChunkLimits;
use millrace_protocol::wire::{ChunksOfText, ChunksRequest};

use super::{LONE_DEATHS_MAX, SubmitError, Submitter, Untaken, backoff, halves};

/// Texts that are cut by one request.
const TEXTS_MAX: usize = 512;
/// Bytes of such texts, unless a single one is longer.
const BYTES_MAX: usize = 256 << 10;
/// Requests at a time: the server cuts on several threads.
const REQUESTS_MAX: usize = 4;

impl Submitter {
    /// Cuts every text into chunks that are short enough for the models of all steps. What the moment
    /// spoiled is tried again, as answers are.
    pub async fn cut(
        &self,
        texts: &[String],
        limits: ChunkLimits,
    ) -> Result<Vec<ChunksOfText>, SubmitError> {
        let mut cut = self.cut_once(texts, limits).await?;
        for attempt in 1..self.options.retry.attempts_max {
            let open: Vec<usize> = (0..texts.len())
                .filter(|&text| is_spoilt(&cut[text]))
                .collect();
            if open.is_empty() {
                break;
            }
            tokio::time::sleep(backoff(&self.options.retry, attempt)).await;
            let again: Vec<String> = open.iter().map(|&text| texts[text].clone()).collect();
            let chunks = self.cut_once(&again, limits).await?;
            for (text, chunks) in open.into_iter().zip(chunks) {
                cut[text] = chunks;
            }
        }
        Ok(cut)
    }

    async fn cut_once(
        &self,
        texts: &[String],
        limits: ChunkLimits,
    ) -> Result<Vec<ChunksOfText>, SubmitError> {
        let requests = requests(texts).into_iter();
        let cutting = requests.map(|range| self.cut_together(&texts[range], limits));
        let cut: Vec<Vec<_>> = futures::stream::iter(cutting)
            .buffered(REQUESTS_MAX)
            .try_collect()
            .await?;
        Ok(cut.into_iter().flatten().collect())
    }

    async fn cut_together(
        &self,
        texts: &[String],
        limits: ChunkLimits,
    ) -> Result<Vec<ChunksOfText>, SubmitError> {
        let untaken = {
            let _in_company = self.suspicion.read().await;
            match self.ask_chunks(texts, limits).await? {
                Ok(cut) => return Ok(cut),
                Err(untaken) => untaken,
            }
        };
        if let Untaken::Late(error) = untaken {
            return Ok(vec![ChunksOfText::Err(error); texts.len()]);
        }
        let _alone = self.suspicion.write().await;
        let mut cut: Vec<Option<ChunksOfText>> = vec![None; texts.len()];
        let mut suspects: Vec<(Range<usize>, u32)> = vec![(0..texts.len(), 0)];
        while let Some((range, deaths)) = suspects.pop() {
            self.ready().await?;
            match self.ask_chunks(&texts[range.clone()], limits).await? {
                Ok(chunks) => {
                    for (index, chunks) in range.zip(chunks) {
                        cut[index] = Some(chunks);
                    }
                }
                Err(_) if range.len() > 1 => {
                    suspects.extend(halves(&range).map(|half| (half, 0)));
                }
                Err(Untaken::Died(_)) if deaths + 1 < LONE_DEATHS_MAX => {
                    suspects.push((range, deaths + 1));
                }
                Err(Untaken::Died(error) | Untaken::Refused(error) | Untaken::Late(error)) => {
                    cut[range.start] = Some(ChunksOfText::Err(error));
                }
            }
        }
        let cut = cut.into_iter();
        Ok(cut.map(|cut| cut.expect("all texts were cut")).collect())
    }

    async fn ask_chunks(
        &self,
        texts: &[String],
        limits: ChunkLimits,
    ) -> Result<Result<Vec<ChunksOfText>, Untaken>, SubmitError> {
        let request = ChunksRequest {
            models: self.models.clone(),
            texts: texts.to_vec(),
            limits,
        };
        let chunks = || self.client.chunks(&request);
        let taken = self.until_taken(texts.len(), chunks).await?;
        Ok(taken.map(|reply| reply.texts))
    }
}

/// Whether another try may cut the text.
fn is_spoilt(chunks: &ChunksOfText) -> bool {
    matches!(chunks, ChunksOfText::Err(error) if error.code.is_retryable())
}

/// The texts in ranges within the bounds of a request.
fn requests(texts: &[String]) -> Vec<Range<usize>> {
    let mut requests: Vec<Range<usize>> = Vec::new();
    let mut bytes = 0;
    for (index, text) in texts.iter().enumerate() {
        bytes += text.len();
        match requests.last_mut() {
            Some(last) if bytes <= BYTES_MAX && last.len() < TEXTS_MAX => last.end = index + 1,
            _ => {
                bytes = text.len();
                requests.push(index..index + 1);
            }
        }
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_in_one_request_and_a_long_one_travels_alone() {
        let long = "x".repeat(BYTES_MAX + 1);
        let texts = ["a", "b", &long, "c"].map(str::to_owned);
        assert_eq!(requests(&texts), [0..2, 2..3, 3..4]);
        let short = vec!["a".to_owned(); TEXTS_MAX + 3];
        assert_eq!(requests(&short), [0..TEXTS_MAX, TEXTS_MAX..TEXTS_MAX + 3]);
        assert!(requests(&[]).is_empty());
    }
}

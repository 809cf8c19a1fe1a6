//! Writes every delivery to the process's standard output, a line of NDJSON each. For pipes and for looking on.
//!
//! Keeps nothing: after a restart the lane goes on where its journal says. When the reader is gone, deliveries wait
//! (`Retry`): what follows in the pipe is started again together with this process, and then nothing is missing.

use std::io::Write;
use std::sync::{Arc, Mutex};

use super::options::Options;
use super::{Kind, Shape, Sink, Track};
use crate::model::{Delivery, Outcome};

pub const KIND: Kind = Kind {
    name: "stdout",
    options: &[],
    open: |open| {
        Box::pin(async move {
            Options::new(open, KIND.options)?;
            Ok(Arc::new(Stdout::new(std::io::stdout())) as Arc<dyn Sink>)
        })
    },
};

struct Stdout<W> {
    out: Arc<Mutex<W>>,
}

impl<W: Write + Send + 'static> Stdout<W> {
    fn new(out: W) -> Self {
        Self { out: Arc::new(Mutex::new(out)) }
    }
}

#[async_trait::async_trait]
impl<W: Write + Send + 'static> Sink for Stdout<W> {
    fn shape(&self) -> Shape {
        Shape { batch: 256, concurrency: 1 }
    }

    async fn deliver(&self, _track: &Track, batch: &[Delivery]) -> Vec<Outcome> {
        let lines = super::lines(batch);
        let out = self.out.clone();
        // A reader that is slow must hold up this output, not a worker of the runtime.
        let written = tokio::task::spawn_blocking(move || {
            let mut out = out.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            out.write_all(&lines)?;
            out.flush()
        })
        .await
        .unwrap_or_else(|stopped| Err(std::io::Error::other(stopped)));
        match written {
            Ok(()) => vec![Outcome::Delivered; batch.len()],
            Err(error) => super::retry_all(batch.len(), &format!("cannot write to standard output: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::cloudevent;

    #[derive(Default)]
    struct Pipe {
        bytes: Vec<u8>,
        flushed: usize,
        broken: bool,
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.broken {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            self.bytes.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            self.flushed = self.bytes.len();
            Ok(())
        }
    }

    #[tokio::test]
    async fn lines_are_flushed_and_a_broken_pipe_waits() {
        let sink = Stdout::new(Pipe::default());
        let (track, batch) = super::super::samples::batch(1..=3);
        assert_eq!(sink.deliver(&track, &batch).await, vec![Outcome::Delivered; 3]);
        {
            let mut pipe = sink.out.lock().unwrap();
            assert_eq!(pipe.flushed, pipe.bytes.len());
            assert_eq!(
                pipe.bytes,
                batch.iter().flat_map(|d| [cloudevent::encode(d), vec![b'\n']].concat()).collect::<Vec<_>>()
            );
            pipe.broken = true;
        }
        let outcomes = sink.deliver(&track, &batch).await;
        assert!(outcomes.iter().all(|o| matches!(o, Outcome::Retry { why, .. } if why.contains("standard output"))));
    }
}

//! The answer to a batch: what the handlers said, written straight into the bytes that go back.
//! `handlers -> Out -> Verdicts -> host`.
//!
//! The layout is `sdk/ABI.md`. What is written here is checked by the host; nothing here knows of streams' types or of wasm.

const MAGIC: [u8; 4] = *b"CWV1";
const HEADER: usize = 16;

/// What a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// JSON, as UTF-8.
    Json,
    /// Text, as UTF-8.
    Text,
    /// Bytes that mean nothing to the host.
    Bytes,
}

impl ContentType {
    fn code(self) -> u8 {
        match self {
            Self::Json => 0,
            Self::Text => 1,
            Self::Bytes => 2,
        }
    }
}

/// Writes an answer in the batch layout.
#[derive(Clone, Debug, Default)]
pub struct Verdicts {
    bytes: Vec<u8>,
    records: u32,
}

/// A place in an answer to go back to.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    len: usize,
    records: u32,
}

impl Verdicts {
    /// An answer that says nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn begin(&mut self, kind: u8, b5: u8, h6: u16, event: u32) -> usize {
        if self.bytes.is_empty() {
            self.bytes.extend_from_slice(&MAGIC);
            self.bytes.extend_from_slice(&(HEADER as u16).to_le_bytes());
            self.bytes.resize(HEADER, 0);
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0, 0, 0, kind, b5]);
        self.bytes.extend_from_slice(&h6.to_le_bytes());
        self.bytes.extend_from_slice(&event.to_le_bytes());
        start
    }

    fn end(&mut self, start: usize) {
        let len = (self.bytes.len() - start).next_multiple_of(4);
        self.bytes.resize(start + len, 0);
        self.patch(start, len);
        self.records += 1;
    }

    fn patch(&mut self, at: usize, value: usize) {
        // The memory of a plugin ends at 4 GiB, and the host's limit on an answer is far below.
        let value = u32::try_from(value).expect("a verdict is smaller than 4 GiB");
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// The event goes to the stream as it is.
    #[inline]
    pub fn pass(&mut self, event: u32, stream: u16) {
        let start = self.begin(1, 0, stream, event);
        self.end(start);
    }

    /// An emission whose payload `write` appends. Nothing is kept where `write` fails.
    pub fn emit_with<E>(
        &mut self,
        event: u32,
        stream: u16,
        content_type: ContentType,
        lane_key: &str,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mark = self.mark();
        let start = self.begin(2, content_type.code(), stream, event);
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(lane_key.as_bytes());
        let payload = self.bytes.len();
        if let Err(error) = write(&mut self.bytes) {
            self.rewind(mark);
            return Err(error);
        }
        self.patch(start + 12, lane_key.len());
        self.patch(start + 16, self.bytes.len() - payload);
        self.end(start);
        Ok(())
    }

    /// An emission.
    pub fn emit(&mut self, event: u32, stream: u16, content_type: ContentType, lane_key: &str, payload: &[u8]) {
        let written: Result<(), std::convert::Infallible> =
            self.emit_with(event, stream, content_type, lane_key, |out| {
                out.extend_from_slice(payload);
                Ok(())
            });
        match written {
            Ok(()) => {}
        }
    }

    fn fault(&mut self, fault: u8, event: u32, message: &str) {
        let start = self.begin(3, fault, 0, event);
        self.bytes.extend_from_slice(&[0; 4]);
        self.patch(start + 12, message.len());
        self.bytes.extend_from_slice(message.as_bytes());
        self.end(start);
    }

    /// The whole batch is to be offered again later; nothing of this answer is kept.
    pub fn retry(&mut self, event: u32, message: &str) {
        self.fault(1, event, message);
    }

    /// This event is poison; what is said of the others stands.
    pub fn reject(&mut self, event: u32, message: &str) {
        self.fault(2, event, message);
    }

    /// Where the answer is now.
    #[inline]
    pub fn mark(&self) -> Mark {
        Mark { len: self.bytes.len(), records: self.records }
    }

    /// Takes back everything that was written after `mark`.
    pub fn rewind(&mut self, mark: Mark) {
        self.bytes.truncate(mark.len);
        self.records = mark.records;
    }

    /// The finished answer; zero bytes where nothing was said.
    pub fn finish(mut self) -> Vec<u8> {
        if self.records == 0 {
            return Vec::new();
        }
        self.bytes[8..12].copy_from_slice(&self.records.to_le_bytes());
        self.bytes
    }
}

//! The journal's tables, as the steps that led to them. A step that was released is never edited.

/// `PRAGMA application_id` of a journal: "CWJI". Another application's database is not written into.
pub const APPLICATION_ID: i64 = 0x4357_4A49;

/// `PRAGMA user_version` counts the steps that a file has behind it.
pub const MIGRATIONS: &[&str] = &[
    r"
PRAGMA application_id = 1129794121;

CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- The finalized block of each chain. Never goes back.
CREATE TABLE chain (
  chain INTEGER PRIMARY KEY, number INTEGER NOT NULL, hash BLOB NOT NULL, parent BLOB NOT NULL, time INTEGER NOT NULL
);

-- A plugin on a chain. `peak_number` is the highest cursor since it was last walked back: with the `peak` of a step it
-- bounds what a lane may have thought due.
CREATE TABLE consumer (
  id INTEGER PRIMARY KEY, plugin TEXT NOT NULL, chain INTEGER NOT NULL, state_version INTEGER NOT NULL,
  number INTEGER, hash BLOB, parent BLOB, time INTEGER,
  peak_number INTEGER NOT NULL DEFAULT 0, safe INTEGER NOT NULL DEFAULT 0, finalized INTEGER NOT NULL DEFAULT 0,
  UNIQUE (plugin, chain)
);
CREATE TABLE state (consumer INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (consumer, key)) WITHOUT ROWID;

-- Unfinalized blocks in which a consumer did something: what it takes to walk back over each. `peak` is the highest
-- cursor that was on top of it before the consumer was last walked back.
CREATE TABLE step (
  consumer INTEGER NOT NULL, number INTEGER NOT NULL, hash BLOB NOT NULL, parent BLOB NOT NULL, time INTEGER NOT NULL,
  first_offset INTEGER NOT NULL, entries INTEGER NOT NULL, peak INTEGER NOT NULL,
  PRIMARY KEY (consumer, number)
) WITHOUT ROWID;
CREATE TABLE undo (
  consumer INTEGER NOT NULL, number INTEGER NOT NULL, key BLOB NOT NULL, old BLOB, PRIMARY KEY (consumer, number, key)
) WITHOUT ROWID;
-- How often a block was taken away from a consumer.
CREATE TABLE orphan (
  consumer INTEGER NOT NULL, hash BLOB NOT NULL, number INTEGER NOT NULL, times INTEGER NOT NULL, PRIMARY KEY (consumer, hash)
) WITHOUT ROWID;

CREATE TABLE track (
  id INTEGER PRIMARY KEY, plugin TEXT NOT NULL, stream TEXT NOT NULL, chain INTEGER NOT NULL, consumer INTEGER NOT NULL,
  description TEXT NOT NULL, schema TEXT, UNIQUE (plugin, stream, chain)
);
CREATE TABLE block (
  id INTEGER PRIMARY KEY, number INTEGER NOT NULL, hash BLOB NOT NULL, parent BLOB NOT NULL, time INTEGER NOT NULL
);
-- op 0 apply, 1 retract; a retract has its payload in the entry that `apply` names.
CREATE TABLE entry (
  offset INTEGER PRIMARY KEY, track INTEGER NOT NULL, op INTEGER NOT NULL, emission BLOB NOT NULL, block INTEGER NOT NULL,
  position INTEGER NOT NULL, ordinal INTEGER NOT NULL, lane_key TEXT NOT NULL, content_type INTEGER NOT NULL, payload BLOB,
  apply INTEGER, retracted_confirmations INTEGER, retracted_safe INTEGER
);
-- The row id, which is the offset, ends every index entry: this is (track, offset).
CREATE INDEX entry_track ON entry (track);

CREATE TABLE lane (output TEXT NOT NULL, track INTEGER NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (output, track)) WITHOUT ROWID;
CREATE TABLE parked (
  output TEXT NOT NULL, track INTEGER NOT NULL, lane_key TEXT NOT NULL, next INTEGER NOT NULL, attempts INTEGER NOT NULL,
  retry_at_ms INTEGER, why TEXT NOT NULL, PRIMARY KEY (output, track, lane_key)
) WITHOUT ROWID;
CREATE TABLE dead (
  id INTEGER PRIMARY KEY AUTOINCREMENT, output TEXT NOT NULL, track INTEGER NOT NULL, offset INTEGER NOT NULL,
  delivery BLOB NOT NULL, attempts INTEGER NOT NULL, why TEXT NOT NULL, at_ms INTEGER NOT NULL, UNIQUE (output, offset)
);
CREATE TABLE redo (output TEXT NOT NULL, track INTEGER NOT NULL, offset INTEGER NOT NULL, PRIMARY KEY (output, track, offset)) WITHOUT ROWID;

CREATE TABLE poison (
  id INTEGER PRIMARY KEY, consumer INTEGER NOT NULL, number INTEGER NOT NULL, hash BLOB NOT NULL, position INTEGER NOT NULL,
  why TEXT NOT NULL, at_ms INTEGER NOT NULL
);
CREATE TABLE version (
  plugin TEXT NOT NULL, digest BLOB NOT NULL, version TEXT NOT NULL, file TEXT NOT NULL, since_ms INTEGER NOT NULL,
  running INTEGER NOT NULL, banned TEXT, PRIMARY KEY (plugin, digest)
) WITHOUT ROWID;
",
    r"
-- Watch sets, as their edits: a set is what they come to, in order. Members stand one behind the other, addresses (20
-- bytes) apart from other words (32): a set of ten million is a few thousand rows.
CREATE TABLE watch_edit (
  id INTEGER PRIMARY KEY, watch_set TEXT NOT NULL, at_ms INTEGER NOT NULL, add_addresses BLOB NOT NULL,
  add_words BLOB NOT NULL, remove_addresses BLOB NOT NULL, remove_words BLOB NOT NULL
);
-- The first block on which an edit holds; chains that are not named have it from their beginning.
CREATE TABLE watch_begin (edit INTEGER NOT NULL, chain INTEGER NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (edit, chain)) WITHOUT ROWID;
-- Blocks that a consumer had passed when an edit reached back to them: it is shown what they hold for that edit alone.
-- What was said of blocks below `said` is not said again; how far its state has come is part of its state.
CREATE TABLE catch_up (
  consumer INTEGER NOT NULL, edit INTEGER NOT NULL, watch_set TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
  said INTEGER NOT NULL,
  PRIMARY KEY (consumer, edit)
) WITHOUT ROWID;
",
    r"
-- What plugins ask for of a chain, until whoever does it has taken it in.
CREATE TABLE ask (id INTEGER PRIMARY KEY AUTOINCREMENT, chain INTEGER NOT NULL, body BLOB NOT NULL);
",
    r"
-- What was last when: how long an entry has been there. From here on the id of a block is the offset of the first of its
-- entries, so that a block whose entries have gone is found without looking for them; `runs_from` is what came before.
CREATE TABLE mark (offset INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL);
INSERT INTO meta SELECT 'runs_from', coalesce(max(offset), 0) FROM entry;
INSERT INTO meta VALUES ('window', 0);
-- The last entry of a track that has gone.
ALTER TABLE track ADD COLUMN forgotten INTEGER NOT NULL DEFAULT 0;

-- Who holds an entry back: its retraction, a dead letter, a parked key, an order to send it again.
CREATE INDEX entry_apply ON entry (apply) WHERE apply IS NOT NULL;
CREATE INDEX dead_offset ON dead (offset);
CREATE INDEX parked_key ON parked (track, lane_key);
CREATE INDEX redo_offset ON redo (offset);

-- What of a track is to be sent to an output once more, by and by.
CREATE TABLE replay (
  id INTEGER PRIMARY KEY, output TEXT NOT NULL, track INTEGER NOT NULL, next INTEGER NOT NULL, last INTEGER NOT NULL,
  first_block INTEGER NOT NULL, last_block INTEGER NOT NULL, pace INTEGER NOT NULL
);
",
];

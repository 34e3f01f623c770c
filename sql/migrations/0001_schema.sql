-- The first schema: tenants, ledgers and their entries, policies, credentials, strands, links, events, states; roles and
-- isolation.

-- A small reference table, read whole: which controller owns which ledger, and whose tokens lead to it.
CREATE TABLE tenant (
    log_id     integer     PRIMARY KEY CHECK (log_id BETWEEN 1 AND 999999999),
    slug       text        COLLATE "C" NOT NULL UNIQUE,
    issuers    bytea       NOT NULL DEFAULT '[]',    -- JSON: those of the policy in force
    created_at timestamptz NOT NULL DEFAULT now()
);

-- What is true of all tenants: one row.
CREATE TABLE deployment (
    id           integer PRIMARY KEY CHECK (id = 1),
    secret_check bytea   NOT NULL,                   -- tells whether a root secret is the one that everything rests on
    kek          bytea   NOT NULL                    -- name of the key-encryption key in use
);

-- One row per ledger; every entry moves it. `size` is the next index: gap-free, in commit order.
CREATE TABLE ledger_head (
    log_id      integer     PRIMARY KEY,
    origin      text        COLLATE "C" NOT NULL,    -- under which name it signs: <host>/<slug>; never changes
    epoch       integer     NOT NULL DEFAULT 1,
    size        bigint      NOT NULL DEFAULT 0,
    frontier    bytea       NOT NULL DEFAULT '',     -- the roots of the tree's largest complete subtrees (ledger/tree.py)
    policy      integer     NOT NULL DEFAULT 0,      -- version in force; 0 before the first
    frozen      text,                                -- why it takes no writes; NULL: it takes them
    demanded    text,                                -- of a frozen one: the checkpoint that it must begin with again
    first_key   integer     NOT NULL DEFAULT 1,      -- generations of the signing key: from the first to the last
    last_key    integer     NOT NULL DEFAULT 1,      -- all sign; more than one while keys overlap
    recorded_at timestamptz NOT NULL DEFAULT now()   -- of the last entry; never decreases
) WITH (fillfactor = 20);                            -- room for updates in place

CREATE TABLE policy_version (
    log_id     integer     NOT NULL,
    version    integer     NOT NULL,
    hash       text        COLLATE "C" NOT NULL,     -- SHA-256 (hex) of body
    body       bytea       NOT NULL,                 -- canonical JSON of the whole policy
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (log_id, version)
);

-- What people were shown. A row is never changed: consents point at it.
CREATE TABLE notice_version (
    log_id       integer     NOT NULL,
    notice       text        COLLATE "C" NOT NULL,
    version      integer     NOT NULL,
    hash         text        COLLATE "C" NOT NULL,   -- SHA-256 (hex) of body
    body         bytea       NOT NULL,               -- canonical JSON, prose in every language included
    published_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (log_id, notice, version)
);

CREATE TABLE credential (
    log_id     integer     NOT NULL,
    id         text        COLLATE "C" NOT NULL,
    kind       text        COLLATE "C" NOT NULL,     -- service, publishable, officer
    name       text        NOT NULL,
    secrets    bytea[]     NOT NULL,                 -- HMAC-SHA256 of the 256-bit secrets; two while one is rotated
    scopes     text[]      COLLATE "C" NOT NULL,
    origins    text[]      COLLATE "C" NOT NULL,     -- exact web origins that may use it from a browser
    rate       integer,                              -- requests per second; NULL: no limit
    created_at   timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,                        -- to the minute
    revoked_at   timestamptz,
    unlogged     text[]      COLLATE "C" NOT NULL DEFAULT '{}', -- what was done to it while the ledger was frozen
    PRIMARY KEY (log_id, id)
);

-- What must not be taken again before it expires: revoked tokens, ended sessions, used challenges.
CREATE TABLE revocation (
    log_id     integer     NOT NULL,
    what       bytea       NOT NULL,                 -- keyed hash of kind and value, 16 bytes
    at         timestamptz NOT NULL DEFAULT now(),   -- whatever was issued before
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (log_id, what)
);

-- One identifier during one tenure: it owns a key and a gap-free sequence of events. What the key seals (this value,
-- payloads, answers, contacts) is unreadable once the key is gone. Identifiers are looked up by keyed hash.
CREATE TABLE strand (
    log_id     integer  NOT NULL,
    identifier bytea    NOT NULL,                    -- keyed hash of namespace and value, 16 bytes
    tenure     integer  NOT NULL,                    -- from 1; the highest is the current one
    namespace  text     COLLATE "C" NOT NULL,
    key        bytea    NOT NULL,                    -- wrapped by the key-encryption key
    value      bytea    NOT NULL,                    -- sealed
    events     bigint   NOT NULL,
    PRIMARY KEY (log_id, identifier, tenure)
);

-- The addresses and numbers that contact consents hold for.
CREATE TABLE contact (
    log_id     integer NOT NULL,
    identifier bytea   NOT NULL,
    tenure     integer NOT NULL,
    contact    bytea   NOT NULL,                     -- keyed hash, 16 bytes
    value      bytea   NOT NULL,                     -- sealed by the strand's key
    PRIMARY KEY (log_id, identifier, tenure, contact)
);

-- Who belongs together, from when until when. The anchor is an account (identity), a group or a guardian.
CREATE TABLE link (
    log_id       integer     NOT NULL,
    link         uuid        NOT NULL,
    kind         text        COLLATE "C" NOT NULL,   -- identity, group, guardian
    identifier   bytea       NOT NULL,
    anchor       bytea       NOT NULL,               -- empty once it is erased, and its dates still count for others
    tenure       integer     NOT NULL,               -- the strand that an identity link began; else 0
    base         integer     NOT NULL,               -- grants of strands up to this one were somebody else's
    shared       boolean     NOT NULL,               -- a thing that changes hands: nothing from outside the tenure counts
    grade        smallint    NOT NULL,               -- of the proof
    began_at     timestamptz NOT NULL,               -- later than everything recorded before
    until        timestamptz,                        -- planned end
    ended_at     timestamptz,
    annulled_at  timestamptz,
    annul_asked  text        COLLATE "C",            -- by whom; somebody else must agree
    PRIMARY KEY (log_id, link)
);
CREATE INDEX link_identifier ON link (log_id, identifier);
CREATE UNIQUE INDEX link_tenure ON link (log_id, identifier, tenure) WHERE kind = 'identity';
CREATE INDEX link_anchor ON link (log_id, anchor);

-- Linked identifiers that said different things, by the link that made it known. Whether one is still open is always
-- worked out.
CREATE TABLE conflict (
    log_id    integer     NOT NULL,
    link      uuid        NOT NULL,
    purpose   text        COLLATE "C" NOT NULL,
    channel   text        COLLATE "C" NOT NULL,
    opened_at timestamptz NOT NULL,
    PRIMARY KEY (log_id, link, purpose, channel)
);

-- The leaves of the tree (ledger/entry.py), gap-free. No role of the service may change or remove one.
CREATE TABLE ledger_entry (
    log_id      integer     NOT NULL,
    idx         bigint      NOT NULL,
    entry       bytea       NOT NULL,
    PRIMARY KEY (log_id, idx)
);

-- Hashes of the tree by 256 (c2sp.org/tlog-tiles): full tiles, each once; others are worked out when asked for.
CREATE TABLE ledger_tile (
    log_id      integer     NOT NULL,
    level       smallint    NOT NULL,
    n           bigint      NOT NULL,
    root        bytea       NOT NULL,                -- what stands for the whole tile in the level above
    hashes      bytea       NOT NULL,                -- 8,192 bytes
    PRIMARY KEY (log_id, level, n)
);

-- What was signed, in order; shown to the world once it stands outside as well (ledger/publish.py).
CREATE TABLE checkpoint (
    log_id       integer     NOT NULL,
    epoch        integer     NOT NULL,
    size         bigint      NOT NULL,
    note         text        NOT NULL,               -- with the signatures of the log and of witnesses
    timestamp    bytea,                              -- RFC 3161 token over the note, where an authority is named
    claimed_at   timestamptz NOT NULL DEFAULT now(), -- by the process that publishes it
    published_at timestamptz,
    PRIMARY KEY (log_id, epoch, size)
);

CREATE INDEX checkpoint_dated ON checkpoint (log_id, published_at) WHERE timestamp IS NOT NULL;

-- What was erased: its entry in the ledger holds the hash of the list. Which entries these were, says `erased`.
CREATE TABLE erasure (
    log_id    integer     NOT NULL,
    erasure   uuid        NOT NULL,
    idx       bigint      NOT NULL,                  -- place of its entry in the ledger
    reason    text        COLLATE "C" NOT NULL,      -- request, retention, annulled
    salt      bytea       NOT NULL,                  -- the entry says SHA-256(salt ‖ each index as u64, ascending)
    events    bigint      NOT NULL,
    erased_at timestamptz NOT NULL,
    PRIMARY KEY (log_id, erasure)
);
CREATE TABLE erased (
    log_id  integer NOT NULL,
    idx     bigint  NOT NULL,
    erasure uuid    NOT NULL,                        -- two, where proof was kept for a time
    PRIMARY KEY (log_id, idx, erasure)
);
CREATE INDEX erased_erasure ON erased (log_id, erasure, idx);

-- Proof that outlives an erasure for a time, because a law says so (such as UWG section 7a): single entries, opened, each
-- sealed by a key of its own. Of the role consent_erase alone.
CREATE TABLE hold (
    log_id     integer     NOT NULL,
    idx        bigint      NOT NULL,                 -- place of the entry in the ledger
    erasure    uuid        NOT NULL,
    identifier bytea       NOT NULL,                 -- keyed hash, as it was: by this an authority's question is answered
    event      uuid        NOT NULL,
    until      timestamptz NOT NULL,
    key        bytea       NOT NULL,                 -- wrapped by the key-encryption key
    opening    bytea       NOT NULL,                 -- sealed
    PRIMARY KEY (log_id, idx)
);
CREATE INDEX hold_identifier ON hold (log_id, identifier);
CREATE INDEX hold_until ON hold (log_id, until);
-- Exports that were ordered: what each covers, so that it comes out the same however often it is fetched, and how far
-- the last delivery has come.
CREATE TABLE export (
    log_id       integer     NOT NULL,
    export       uuid        NOT NULL,
    format       text        COLLATE "C" NOT NULL,   -- ndjson, csv, parquet
    filter       bytea       NOT NULL,               -- JSON (ledger/export.py); of a subject the keyed hash
    salt         bytea       NOT NULL,               -- the entry of the order says SHA-256(salt ‖ filter)
    epoch        integer     NOT NULL,
    size         bigint      NOT NULL,               -- of the tree that it proves everything against
    first        bigint      NOT NULL,               -- the range: from here
    "end"        bigint      NOT NULL,               -- up to but without this
    note         text        NOT NULL,               -- the signed checkpoint of that size
    timestamp    bytea,                              -- RFC 3161 token over the note
    identifiers  bytea[]     NOT NULL,               -- of a subject: its strands,
    tenures      integer[]   NOT NULL,
    events       bigint[]    NOT NULL,               -- how many events each had in that tree,
    accounts     boolean[]   NOT NULL,               -- and whether others are linked to it
    status       text        COLLATE "C" NOT NULL,   -- ready, running, done
    entries_done bigint      NOT NULL,
    events_done  bigint      NOT NULL,
    created_at   timestamptz NOT NULL,
    PRIMARY KEY (log_id, export)
);

-- What happened to a person: one act (one call) is one event, and one entry of the ledger. What was said or done stands
-- in the payload, sealed; beside it what queries need.
CREATE TABLE event (
    log_id      integer     NOT NULL,
    idx         bigint      NOT NULL,                -- place in the ledger
    event       uuid        NOT NULL,
    kind        text        COLLATE "C" NOT NULL,    -- consent, link
    identifier  bytea       NOT NULL,
    tenure      integer     NOT NULL,
    sequence    bigint      NOT NULL,                -- place among the strand's events, from 1
    purposes    text[]      COLLATE "C" NOT NULL,    -- of a consent's records; of others empty
    statuses    text[]      COLLATE "C" NOT NULL,    -- of the same records, same order; of a link what happened to it
    credential  text        COLLATE "C" NOT NULL,
    grade       smallint    NOT NULL,
    recorded_at timestamptz NOT NULL,
    link        uuid,                                -- of what happened to a link
    payload     bytea       NOT NULL,                -- canonical JSON, sealed
    PRIMARY KEY (log_id, idx),
    UNIQUE (log_id, identifier, tenure, sequence)
);
CREATE INDEX event_link ON event (log_id, link) WHERE link IS NOT NULL;

-- What a check reads: the records that stand, one row per key and slot (see states.py).
CREATE TABLE consent_state (
    log_id         integer     NOT NULL,
    identifier     bytea       NOT NULL,
    purpose        text        COLLATE "C" NOT NULL,
    channel        text        COLLATE "C" NOT NULL,
    contact        bytea       NOT NULL,
    recipient      text        COLLATE "C" NOT NULL,
    slot           smallint    NOT NULL,
    grade          smallint    NOT NULL,
    tenure         integer     NOT NULL,
    via            bytea       NOT NULL,             -- links that carried it here, or the guardian's; else ''
    status         text        COLLATE "C" NOT NULL,
    occurred_at    timestamptz NOT NULL,
    recorded_at    timestamptz NOT NULL,
    expires_at     timestamptz,
    notice         text        COLLATE "C" NOT NULL, -- what was shown; '', 0, '' where nothing was
    notice_version integer     NOT NULL,
    language       text        COLLATE "C" NOT NULL,
    method         text        COLLATE "C" NOT NULL,
    event          uuid        NOT NULL,
    linked_at      timestamptz,                      -- of a carried no: since when the two belonged together,
    origin         bytea       NOT NULL DEFAULT '',  -- on which identifier it was said,
    account        bytea       NOT NULL DEFAULT '',  -- and whose account it was
    PRIMARY KEY (log_id, identifier, purpose, channel, contact, recipient, slot, grade, tenure, via)
) WITH (fillfactor = 80);

-- Answers already given, so that a retry doubles nothing.
CREATE TABLE idempotency (
    log_id      integer     NOT NULL,
    key         bytea       NOT NULL,                -- keyed hash of it and of whose it is (credential, device), 16 bytes
    body        bytea       NOT NULL,                -- keyed hash of the canonical body; '' once it is erased, like the rest
    event       uuid        NOT NULL,
    identifier  bytea       NOT NULL,
    tenure      integer     NOT NULL,
    idx         bigint      NOT NULL,                -- of the event, and how large the tree was once it was written:
    size        bigint      NOT NULL,                -- what the receipt is made from again
    answer      bytea       NOT NULL,                -- without its receipt, sealed by the strand's key
    recorded_at timestamptz NOT NULL,
    PRIMARY KEY (log_id, key)
);

-- Lists that were read in, or are: how far each has come, so that another run of the same file goes on from there.
CREATE TABLE import (
    log_id          integer     NOT NULL,
    list            bytea       NOT NULL,            -- keyed hash of the list's name and of how it is read
    reading         uuid        NOT NULL,            -- new whenever it is read from its first row
    salt            bytea       NOT NULL,
    position        bigint      NOT NULL DEFAULT 0,  -- bytes of the file that are done with,
    line            bigint      NOT NULL DEFAULT 0,  -- lines,
    rows            bigint      NOT NULL DEFAULT 0,  -- and rows
    digest          bytea       NOT NULL DEFAULT '', -- SHA-256(salt ‖ these bytes)
    tally           bytea       NOT NULL DEFAULT '{}', -- JSON: what became of the rows
    refusals        bigint      NOT NULL DEFAULT 0,  -- bytes of the file of refused rows,
    refusals_digest bytea       NOT NULL DEFAULT '', -- and SHA-256(salt ‖ these)
    started_at      timestamptz NOT NULL DEFAULT now(),
    finished_at     timestamptz,
    PRIMARY KEY (log_id, list)
);

-- Tenant isolation in the database: a statement sees and touches the rows of the tenant for which its connection acts.
-- The setting has no default: a statement sent before anybody said for whom fails.
ALTER TABLE ledger_head ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON ledger_head USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE policy_version ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON policy_version USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE notice_version ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON notice_version USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE credential ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON credential USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE revocation ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON revocation USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE strand ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON strand USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE contact ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON contact USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE link ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON link USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE conflict ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON conflict USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE ledger_entry ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON ledger_entry USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE ledger_tile ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON ledger_tile USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE checkpoint ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON checkpoint USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE erasure ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON erasure USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE erased ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON erased USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE hold ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON hold USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE export ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON export USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE event ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON event USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE consent_state ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON consent_state USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE idempotency ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON idempotency USING (log_id = current_setting('consent.log_id')::integer);
ALTER TABLE import ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON import USING (log_id = current_setting('consent.log_id')::integer);

ALTER TABLE deployment ENABLE ROW LEVEL SECURITY;
CREATE POLICY everybody_reads ON deployment FOR SELECT USING (true);
CREATE POLICY everybody_adds ON deployment FOR INSERT WITH CHECK (true);

-- Who is there, everybody may read and add to; whom a tenant trusts is its own to say.
ALTER TABLE tenant ENABLE ROW LEVEL SECURITY;
CREATE POLICY everybody_reads ON tenant FOR SELECT USING (true);
CREATE POLICY everybody_adds ON tenant FOR INSERT WITH CHECK (true);
CREATE POLICY one_tenant ON tenant FOR UPDATE USING (log_id = current_setting('consent.log_id')::integer);

GRANT SELECT ON ALL TABLES IN SCHEMA public TO consent_app;
GRANT INSERT ON ALL TABLES IN SCHEMA public TO consent_app;
REVOKE INSERT ON migration, tenant, erasure, erased, hold FROM consent_app;
REVOKE SELECT ON hold FROM consent_app;
GRANT INSERT (log_id, slug) ON tenant TO consent_app;
-- Entries, tiles and events may be added, and neither changed nor removed.
GRANT UPDATE ON tenant, ledger_head, checkpoint, credential, revocation, strand, link, consent_state, import
    TO consent_app;
-- Of an export only how far it has come.
GRANT UPDATE (status, entries_done, events_done) ON export TO consent_app;
GRANT DELETE ON revocation, consent_state, conflict TO consent_app;
-- Whoever erases may remove events and all that seals them, and neither entries nor tiles.
GRANT SELECT, DELETE ON event, strand, contact, consent_state, link, conflict, export, hold TO consent_erase;
GRANT SELECT, INSERT ON erasure, erased, hold, consent_state TO consent_erase;
GRANT SELECT, UPDATE ON idempotency, consent_state, hold TO consent_erase;
GRANT UPDATE (anchor, ended_at, annul_asked) ON link TO consent_erase;

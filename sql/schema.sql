-- The whole schema as it is now. Equals what the migrations build; a test compares the two.
--
-- Every primary and unique key begins with log_id: one tenant owns one ledger, and log_id is at once its ledger, its
-- feed, its cache region and the distribution column of a sharded database. Exempt by name: migration, tenant.
-- No triggers, no sequences, no advisory locks, no foreign keys across ledgers.

CREATE TABLE migration (
    version    integer     PRIMARY KEY,
    name       text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- A small reference table, read whole: which controller owns which ledger.
CREATE TABLE tenant (
    log_id     integer     PRIMARY KEY,
    slug       text        COLLATE "C" NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- One row per ledger; whoever changes anything locks it first. `size` is the next index: gap-free, in commit order.
CREATE TABLE ledger_head (
    log_id      integer     PRIMARY KEY,
    epoch       integer     NOT NULL DEFAULT 1,
    size        bigint      NOT NULL DEFAULT 0,
    policy      integer     NOT NULL DEFAULT 0,      -- version in force; 0 before the first
    frozen      boolean     NOT NULL DEFAULT false,
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
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz,
    PRIMARY KEY (log_id, id)
);

-- Who some system knows by which name. Looked up by keyed hash; `events` counts the identifier's events, gap-free.
CREATE TABLE identifier (
    log_id     integer NOT NULL,
    identifier bytea   NOT NULL,                     -- keyed hash of namespace and value, 16 bytes
    namespace  text    COLLATE "C" NOT NULL,
    value      text    COLLATE "C" NOT NULL,
    events     bigint  NOT NULL,
    PRIMARY KEY (log_id, identifier)
);

-- The addresses and numbers that contact consents hold for.
CREATE TABLE contact (
    log_id  integer NOT NULL,
    contact bytea   NOT NULL,                        -- keyed hash, 16 bytes
    value   text    COLLATE "C" NOT NULL,
    PRIMARY KEY (log_id, contact)
);

-- One act of a person (one call) is one event. Never updated, never deleted by the service.
CREATE TABLE consent_event (
    log_id      integer     NOT NULL,
    idx         bigint      NOT NULL,                -- place in the ledger
    event       uuid        NOT NULL,
    identifier  bytea       NOT NULL,
    sequence    bigint      NOT NULL,                -- place among the identifier's events, from 1
    purposes    text[]      COLLATE "C" NOT NULL,
    statuses    text[]      COLLATE "C" NOT NULL,    -- of the same records, same order
    credential  text        COLLATE "C" NOT NULL,
    grade       smallint    NOT NULL,
    recorded_at timestamptz NOT NULL,
    payload     bytea       NOT NULL,                -- canonical JSON of the whole act
    PRIMARY KEY (log_id, idx),
    UNIQUE (log_id, event),
    UNIQUE (log_id, identifier, sequence)
);

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
    status         text        COLLATE "C" NOT NULL,
    occurred_at    timestamptz NOT NULL,
    recorded_at    timestamptz NOT NULL,
    expires_at     timestamptz,
    notice         text        COLLATE "C" NOT NULL, -- what was shown; '', 0, '' where nothing was
    notice_version integer     NOT NULL,
    language       text        COLLATE "C" NOT NULL,
    method         text        COLLATE "C" NOT NULL,
    event          uuid        NOT NULL,
    PRIMARY KEY (log_id, identifier, purpose, channel, contact, recipient, slot, grade)
) WITH (fillfactor = 80);

-- Answers already given, so that a retry doubles nothing.
CREATE TABLE idempotency (
    log_id      integer     NOT NULL,
    credential  text        COLLATE "C" NOT NULL,
    device      bytea       NOT NULL,                -- the device that used the key; empty for services
    key         bytea       NOT NULL,                -- keyed hash, 16 bytes
    body        bytea       NOT NULL,                -- SHA-256 of the canonical body
    event       uuid        NOT NULL,
    answer      bytea       NOT NULL,
    recorded_at timestamptz NOT NULL,
    PRIMARY KEY (log_id, credential, device, key)
);

-- Exports. Pages go by the place in the ledger, each a short statement of its own, so that no snapshot grows old.

-- name: add_export :exec
INSERT INTO export (log_id, export, format, filter, salt, epoch, size, first, "end", note, timestamp, identifiers,
                    tenures, events, accounts, status, entries_done, events_done, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, 'ready', 0, 0, $16);

-- name: read_export :one
SELECT export, format, filter, salt, epoch, size, first, "end", note, timestamp, identifiers, tenures, events, accounts,
       status, entries_done, events_done, created_at
FROM export
WHERE log_id = $1 AND export = $2;

-- name: note_progress :exec
UPDATE export SET status = $3, entries_done = $4, events_done = $5 WHERE log_id = $1 AND export = $2;

-- name: next_event :one
-- The first event at a place or past it.
SELECT idx, recorded_at FROM event WHERE log_id = $1 AND idx >= $2 ORDER BY idx LIMIT 1;

-- name: read_checkpoint :one
SELECT note, timestamp FROM checkpoint WHERE log_id = $1 AND epoch = $2 AND size = $3;

-- name: read_strands :many
-- Every strand of some identifiers.
SELECT identifier, tenure, key, events FROM strand
WHERE log_id = $1 AND identifier = ANY($2::bytea[])
ORDER BY identifier, tenure;

-- name: read_opened :many
-- The events of a page ($2 up to but without $3) that may be asked for, and what opens them. An empty list limits
-- nothing; a record may be about all purposes.
SELECT e.idx, e.event, e.identifier, e.tenure, e.sequence, e.payload, s.key
FROM event e
JOIN strand s ON s.log_id = $1 AND s.identifier = e.identifier AND s.tenure = e.tenure
WHERE e.log_id = $1 AND e.idx >= $2 AND e.idx < $3
  AND (cardinality($4::text[]) = 0 OR e.purposes && ($4::text[] || '*'::text))
  AND (cardinality($5::text[]) = 0 OR e.statuses && $5::text[])
  AND (cardinality($6::text[]) = 0 OR e.credential = ANY($6::text[]))
  AND (cardinality($7::text[]) = 0 OR e.kind = ANY($7::text[]))
ORDER BY e.idx;

-- name: read_opened_of :many
-- The next events of some strands in a range, and what opens them.
SELECT e.idx, e.event, e.identifier, e.tenure, e.sequence, e.payload, s.key
FROM unnest($4::bytea[], $5::int[]) AS m (identifier, tenure)
JOIN strand s ON s.log_id = $1 AND s.identifier = m.identifier AND s.tenure = m.tenure
JOIN event e ON e.log_id = $1 AND e.identifier = m.identifier AND e.tenure = m.tenure
WHERE e.idx >= $2 AND e.idx < $3
ORDER BY e.idx
LIMIT $6;

-- name: read_erasures :many
-- The next erasures, past a place in the ledger, of which something lies in a range.
SELECT x.erasure, x.idx, x.reason, x.salt, x.events, l.entry
FROM erasure x
JOIN ledger_entry l ON l.log_id = $1 AND l.idx = x.idx
WHERE x.log_id = $1 AND x.idx > $4
  AND EXISTS (SELECT FROM erased d WHERE d.log_id = $1 AND d.erasure = x.erasure AND d.idx >= $2 AND d.idx < $3)
ORDER BY x.idx
LIMIT $5;

-- name: read_erased :many
-- The next entries of an erasure.
SELECT idx FROM erased WHERE log_id = $1 AND erasure = $2 AND idx > $3 ORDER BY idx LIMIT $4;

-- The check path reads persons (tenures.sql); here is what is shown beside decisions. Values are sealed: the strand's key
-- comes with each.

-- name: read_contacts :many
SELECT c.contact, c.value, c.identifier, c.tenure, s.key
FROM contact c
JOIN strand s ON s.log_id = $1 AND s.identifier = c.identifier AND s.tenure = c.tenure
WHERE c.log_id = $1 AND c.identifier = ANY($2::bytea[]) AND c.contact = ANY($3::bytea[]);

-- name: read_history :many
-- A page of one identifier's events, oldest first, past a place in a strand.
SELECT e.idx, e.tenure, e.sequence, e.event, e.payload, s.key
FROM event e
JOIN strand s ON s.log_id = $1 AND s.identifier = $2 AND s.tenure = e.tenure
WHERE e.log_id = $1 AND e.identifier = $2 AND (e.tenure, e.sequence) > ($3, $4) AND e.kind = 'consent'
ORDER BY e.tenure, e.sequence
LIMIT $5;

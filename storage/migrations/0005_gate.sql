-- A run whose version broke a limit is held; files that the nightly edit took in.

ALTER TABLE runs RENAME TO runs_before; -- a CHECK cannot be widened in place
CREATE TABLE runs (
    run_id VARCHAR PRIMARY KEY,
    name VARCHAR,
    prefect_run_id VARCHAR,
    method VARCHAR NOT NULL,
    mode VARCHAR NOT NULL CHECK (mode IN ('simultaneous', 'sequential')),
    model VARCHAR,
    version VARCHAR,
    settings JSON,
    source VARCHAR,
    status VARCHAR NOT NULL CHECK (status IN ('running', 'completed', 'held', 'failed', 'cancelled')),
    started_at TIMESTAMP NOT NULL,
    finished_at TIMESTAMP,
    seconds DOUBLE,
    out VARCHAR,
    message VARCHAR,
    part VARCHAR NOT NULL,
    arguments JSON
);
INSERT INTO runs BY NAME SELECT * FROM runs_before;
DROP TABLE runs_before;
COMMENT ON TABLE runs IS 'One row per run, as it last was.';
COMMENT ON COLUMN runs.status IS '''held'': the version broke a limit of the quality gate; it can be made again, and out is as it was';
COMMENT ON COLUMN runs.model IS 'Fingerprint of the model the run started from';
COMMENT ON COLUMN runs.version IS 'Fingerprint of the model the run made';
COMMENT ON COLUMN runs.settings IS 'Hyper-parameters as JSON';
COMMENT ON COLUMN runs.source IS 'Where the requests came from';
COMMENT ON COLUMN runs.out IS 'Folder of the published model';
COMMENT ON COLUMN runs.message IS 'Why the run failed or was held, or what it wants to say';
COMMENT ON COLUMN runs.arguments IS 'What the run was asked for, as JSON; NULL for undo and redo, and for runs of before this column';

CREATE TABLE intake (
    out VARCHAR NOT NULL,
    sha256 VARCHAR NOT NULL,
    file VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,
    status VARCHAR NOT NULL CHECK (status IN ('running', 'published', 'held', 'refused', 'failed')),
    reason VARCHAR,
    taken_at TIMESTAMP NOT NULL,
    part VARCHAR NOT NULL,
    PRIMARY KEY (out, sha256)
);
COMMENT ON TABLE intake IS 'Files that the nightly edit found in its inbox, each taken once, by content, for the model in out.';
COMMENT ON COLUMN intake.out IS 'Folder of the model that the nights add up in';
COMMENT ON COLUMN intake.sha256 IS 'Hash of the file''s content';
COMMENT ON COLUMN intake.file IS 'Where it was found';
COMMENT ON COLUMN intake.run_id IS 'The edit that takes it, as in runs; a refused file has none there';
COMMENT ON COLUMN intake.status IS 'running and failed are taken up again the next time; held and refused are not';
COMMENT ON COLUMN intake.reason IS 'Why it was held, refused or failed';
COMMENT ON COLUMN intake.taken_at IS 'When it was first taken, UTC';

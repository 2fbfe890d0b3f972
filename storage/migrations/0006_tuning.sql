-- What `metake tune` tried.

CREATE TABLE tuning (
    tuning VARCHAR NOT NULL,
    trial INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    method VARCHAR NOT NULL,
    why VARCHAR NOT NULL,
    layers JSON NOT NULL,
    settings JSON NOT NULL,
    efficacy DOUBLE,
    generalisation DOUBLE,
    specificity DOUBLE,
    harmonic DOUBLE,
    floor DOUBLE NOT NULL,
    taken BOOLEAN NOT NULL,
    facts INTEGER NOT NULL,
    seconds DOUBLE NOT NULL,
    tuned_at TIMESTAMP NOT NULL,
    part VARCHAR NOT NULL,
    PRIMARY KEY (tuning, trial)
);
COMMENT ON TABLE tuning IS 'One row per trial of metake tune: settings with which held-back facts were written, measured and taken back.';
COMMENT ON COLUMN tuning.tuning IS 'The tuning that it belongs to: key of its artefact, which holds the preset, all of its numbers and the plot';
COMMENT ON COLUMN tuning.trial IS 'From 1, in the order of trying';
COMMENT ON COLUMN tuning.name IS 'The model''s name';
COMMENT ON COLUMN tuning.model IS 'Its fingerprint';
COMMENT ON COLUMN tuning.why IS 'What made it worth trying';
COMMENT ON COLUMN tuning.settings IS 'Every hyper-parameter of the trial';
COMMENT ON COLUMN tuning.efficacy IS 'Success, 0 to 1, as generalisation and specificity; harmonic is the mean of the three';
COMMENT ON COLUMN tuning.floor IS 'The specificity that was to be kept';
COMMENT ON COLUMN tuning.taken IS 'Whether the preset is this trial''s settings';
COMMENT ON COLUMN tuning.facts IS 'How many were written';
COMMENT ON COLUMN tuning.tuned_at IS 'When the tuning ended, UTC';

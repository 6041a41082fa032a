package snapshot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/mentasystems/colmena/internal/durable"
)

// sink takes either the manifest of a local snapshot or the copy stream of another node. It is used by one goroutine, as raft does.
type sink struct {
	store *Store
	doc   document

	local []byte   // the manifest so far
	copy  *decoder // not nil once the first byte said that it is a copy
	stage string   // being filled by copy

	failed error // the first error: nothing is taken after it
	closed bool
	result error // of Close
}

func (k *sink) ID() string { return k.doc.ID }

// Write takes the next bytes. After an error only Cancel makes sense.
func (k *sink) Write(p []byte) (n int, err error) {
	switch {
	case k.closed:
		return 0, errors.New("snapshot: write to a closed sink")
	case k.failed != nil:
		return 0, k.failed
	case k.store.ctx.Err() != nil:
		return 0, ErrClosed
	case len(p) == 0:
		return 0, nil
	}
	if k.copy == nil && len(k.local) == 0 {
		switch p[0] {
		case kindCopy:
			k.copy = newDecoder((*stageTarget)(k))
		case kindManifest:
		default:
			k.failed = fmt.Errorf("%w: a snapshot that begins with byte %#x is neither a manifest nor a copy", ErrDamaged, p[0])
			return 0, k.failed
		}
	}
	if k.copy != nil {
		n, k.failed = k.copy.Write(p)
		return n, k.failed
	}
	if len(k.local)+len(p) > MaxManifestBytes {
		k.failed = fmt.Errorf("snapshot: a manifest of more than %d bytes", MaxManifestBytes)
		return 0, k.failed
	}
	k.local = append(k.local, p...)
	return len(p), nil
}

// Close publishes the snapshot. The files a local manifest speaks of must be durable by now. If it returns an error nothing was published.
// Later calls return what the first returned, so both Persist and raft may call it.
func (k *sink) Close() error {
	if k.closed {
		return k.result
	}
	k.closed = true
	switch {
	case k.failed != nil:
		k.result = k.failed
	case k.copy != nil:
		k.result = k.closeCopy()
	default:
		k.result = k.closeLocal()
	}
	if k.result != nil {
		k.result = fmt.Errorf("snapshot: %s: %w", k.doc.ID, errors.Join(k.result, k.discard()))
	}
	return k.result
}

// Cancel gives the snapshot up. After Close it does nothing.
func (k *sink) Cancel() error {
	if k.closed {
		return nil
	}
	k.closed = true
	k.result = errors.New("snapshot: the snapshot was cancelled")
	return k.discard()
}

// discard removes the stage.
func (k *sink) discard() error {
	if k.copy != nil {
		k.copy.close()
	}
	if k.stage == "" {
		return nil
	}
	stage := k.stage
	k.stage = ""
	return k.store.cfg.Generations.discard(stage)
}

func (k *sink) closeLocal() error {
	durable.CrashPoint("snapshot.persist.before")
	if _, err := DecodeManifest(k.local); err != nil {
		return err
	}
	k.doc.State, k.doc.Manifest = stateReference, k.local
	s := k.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.publishLocked(&k.doc); err != nil {
		return err
	}
	s.reapLocked()
	return nil
}

// closeCopy verifies the copy, makes it durable, and publishes it as staged. Earlier staged ones are given up then: this one is newer.
func (k *sink) closeCopy() error {
	if err := k.copy.finish(); err != nil {
		return err
	}
	s, m := k.store, k.copy.manifest
	if err := s.verifyStage(k.stage, m); err != nil {
		return err
	}
	ready, err := s.cfg.Generations.seal(k.stage)
	k.stage = ready
	if err != nil {
		return err
	}
	durable.CrashPoint("install.staged")
	k.doc.State, k.doc.Stage, k.doc.Manifest = stateStaged, filepath.Base(ready), m.Encode()
	s.installMu.Lock()
	defer s.installMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.recovered {
		if err := s.noneStagedLocked(); err != nil {
			return err
		}
		s.recovered = true
	}
	if err := s.publishLocked(&k.doc); err != nil {
		return err
	}
	k.stage = "" // belongs to the manifest now
	durable.CrashPoint("install.manifest")
	s.discardStagedLocked(k.doc.ID)
	return nil
}

// stageTarget is the sink as the target of a copy stream.
type stageTarget sink

func (t *stageTarget) begin(m *Manifest, total int64) error {
	s := t.store
	if s.cfg.Verify == nil {
		return errors.New("snapshot: this store cannot verify copies and takes none")
	}
	if s.cfg.Accept != nil {
		if err := s.cfg.Accept(m); err != nil {
			return fmt.Errorf("snapshot: the copy is refused: %w", err)
		}
	}
	if err := s.checkSpace(s.cfg.Generations.dir, total); err != nil {
		return err
	}
	var err error
	t.stage, err = s.cfg.Generations.Stage()
	return err
}

func (t *stageTarget) create(d Database, _ int64) (io.WriteCloser, error) {
	path := filepath.Join(t.stage, d.File) // the manifest was checked: a plain base name, each once
	if err := durable.Fault(durable.OpCreate, path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return stagedFile{f}, nil
}

// stagedFile syncs on Close.
type stagedFile struct{ *os.File }

func (f stagedFile) Write(p []byte) (int, error) {
	if err := durable.Fault(durable.OpWrite, f.Name()); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f stagedFile) Close() error {
	return errors.Join(durable.SyncOpen(f.File), f.File.Close())
}

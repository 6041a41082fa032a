package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/mentasystems/colmena/internal/durable"
)

// stateNames is what a node makes in its directory. node.json is the last to go, so that a wipe that was cut short can be repeated; the lock
// file stays, as always.
var stateNames = []string{"generations", "snapshots", "scratch", "raft.db", "raft.db.new"}

// Wipe removes a node's state from its data directory, which must not be in use. Other files are left alone. A directory that is no node's is
// refused, one that does not exist is nothing to do.
func Wipe(dir string) (err error) {
	switch has, statErr := Exists(dir); {
	case statErr != nil:
		return fmt.Errorf("colmena: wipe %s: %w", dir, statErr)
	case !has:
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("colmena: wipe %s: it holds no node.json, so it is not a node's data directory; nothing was removed", dir)
	}
	lock, err := durable.LockDir(dir)
	if err != nil {
		return fmt.Errorf("colmena: wipe: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	var doc document
	if err := durable.LoadDoc(filepath.Join(dir, fileName), documentKind, documentVersion, &doc); err != nil {
		return fmt.Errorf("colmena: wipe %s: it is not known whose directory it is; nothing was removed: %w", dir, err)
	}
	if err := durable.RemoveTemps(dir); err != nil {
		return fmt.Errorf("colmena: wipe: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !slices.Contains(stateNames, e.Name()) {
			continue
		}
		if err := durable.RemoveAllSync(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("colmena: wipe: %w", err)
		}
	}
	if err := durable.RemoveAllSync(filepath.Join(dir, fileName)); err != nil {
		return fmt.Errorf("colmena: wipe: %w", err)
	}
	return nil
}

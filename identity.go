package colmena

import (
	crand "crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/mentasystems/colmena/internal/durable"
)

// identity is what makes a data directory this node's: it is written before anything
// else and never changes, but for the cluster's ID, which a joining node learns.
type identity struct {
	NodeID string
	// ClusterID is empty until the node belongs to a cluster.
	ClusterID string
	// Incarnation tells this directory from an earlier one of the same NodeID, whose
	// votes it does not remember.
	Incarnation string
	// StoreID is kept in the log store too: one that was swapped is noticed.
	StoreID string
	// Forming says that this node gave ClusterID itself, to form a cluster.
	Forming bool
	// Formed is set once the node has formed a cluster or entered one, so that a start
	// cut short while forming one is told from a lost log.
	Formed bool
}

const (
	identityKind    = "colmena-node"
	identityVersion = 1
)

// loadIdentity reads the directory's identity, or gives an empty directory one. The
// caller holds the directory's lock.
func loadIdentity(dir, nodeID string) (identity, error) {
	path := filepath.Join(dir, "node.json")
	var id identity
	// A start may have been cut short while it wrote the file.
	if err := durable.RemoveTemps(dir); err != nil {
		return id, fmt.Errorf("colmena: data directory: %w", err)
	}
	err := durable.LoadDoc(path, identityKind, identityVersion, &id)
	switch {
	case err == nil && nodeID != "" && nodeID != id.NodeID:
		return id, fmt.Errorf("colmena: directory %s belongs to node %q, not to %q: use that NodeID, or another directory", dir, id.NodeID, nodeID)
	case err == nil:
		return id, nil
	case !errors.Is(err, fs.ErrNotExist):
		return id, fmt.Errorf("colmena: %s cannot be read, so it is not known which node's data this is: %w", path, err)
	}
	if err := checkEmpty(dir); err != nil {
		return id, err
	}
	id = identity{NodeID: nodeID, Incarnation: randomID(), StoreID: randomID()}
	if id.NodeID == "" {
		id.NodeID = "node-" + randomID()[:16]
	}
	return id, id.save(dir)
}

func (id *identity) save(dir string) error {
	return durable.SaveDoc(filepath.Join(dir, "node.json"), identityKind, identityVersion, id)
}

// checkEmpty refuses to settle in a directory with foreign content.
func checkEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if name == "lock" || name == "lost+found" || strings.HasPrefix(name, "node.json") {
			continue
		}
		return fmt.Errorf("colmena: directory %s holds %q but no node.json, so it is not a directory of this version: start in an empty one; a database file of an earlier version is taken over with Node.Load", dir, name)
	}
	return nil
}

func randomID() string {
	var b [16]byte
	_, _ = crand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}

// HasExistingState reports whether dir is a node's data directory.
func HasExistingState(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, "node.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

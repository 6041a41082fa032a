// Package identity keeps what makes a data directory one node's: who the node is, which cluster it belongs to, and how far it has come in
// forming or entering it. It is one document, node.json, the first thing to be written to a directory and the last to be wiped.
package identity

import (
	crand "crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/mentasystems/colmena/internal/durable"
)

// Identity is a directory's, as node.json states it. Its methods are safe for concurrent use.
type Identity struct {
	NodeID string
	// Incarnation tells this directory from an earlier one of the same NodeID, whose votes it does not remember.
	Incarnation string
	// StoreID is kept in the log store too: one that was swapped is noticed.
	StoreID string

	path string
	mu   sync.Mutex
	doc  document // guarded by mu; NodeID, Incarnation and StoreID in it never change
}

// document is node.json. A field more needs another version.
type document struct {
	NodeID string
	// ClusterID is empty until the node belongs to a cluster.
	ClusterID   string
	Incarnation string
	StoreID     string
	// Forming says that this node gave ClusterID itself, to form a cluster.
	Forming bool
	// Formed is set once the node has formed a cluster or entered one, so that a start cut short while forming one is told from a lost log.
	Formed bool
}

const (
	fileName = "node.json"

	documentKind    = "colmena-node"
	documentVersion = 1
)

// Load reads the directory's identity, or gives an empty directory one. nodeID "" stands for the directory's own, or for a random one. The
// caller holds the directory's lock.
func Load(dir, nodeID string) (*Identity, error) {
	path := filepath.Join(dir, fileName)
	// A start may have been cut short while it wrote the file.
	if err := durable.RemoveTemps(dir); err != nil {
		return nil, fmt.Errorf("colmena: data directory: %w", err)
	}
	var doc document
	err := durable.LoadDoc(path, documentKind, documentVersion, &doc)
	switch {
	case err == nil && nodeID != "" && nodeID != doc.NodeID:
		return nil, fmt.Errorf("colmena: directory %s belongs to node %q, not to %q: use that NodeID, or another directory", dir, doc.NodeID, nodeID)
	case err == nil:
		return of(path, doc), nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("colmena: %s cannot be read, so it is not known which node's data this is: %w", path, err)
	}
	if err := checkEmpty(dir); err != nil {
		return nil, err
	}
	doc = document{NodeID: nodeID, Incarnation: Random(), StoreID: Random()}
	if doc.NodeID == "" {
		doc.NodeID = "node-" + Random()[:16]
	}
	id := of(path, doc)
	return id, id.saveLocked(doc)
}

func of(path string, doc document) *Identity {
	return &Identity{NodeID: doc.NodeID, Incarnation: doc.Incarnation, StoreID: doc.StoreID, path: path, doc: doc}
}

// checkEmpty refuses to settle in a directory with foreign content.
func checkEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if name == "lock" || name == "lost+found" || strings.HasPrefix(name, fileName) {
			continue
		}
		return fmt.Errorf("colmena: directory %s holds %q but no node.json, so it is not a directory of this version: start in an empty one; a database file of an earlier version is taken over with Node.Load", dir, name)
	}
	return nil
}

// saveLocked writes doc, and is the only one to write the file. Nobody else has the identity, or the caller holds mu.
func (id *Identity) saveLocked(doc document) error {
	return durable.SaveDoc(id.path, documentKind, documentVersion, &doc)
}

// ClusterID is the cluster this node belongs to, "" while it belongs to none.
func (id *Identity) ClusterID() string {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.doc.ClusterID
}

// Forming reports whether the node gave ClusterID itself.
func (id *Identity) Forming() bool {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.doc.Forming
}

// Formed reports whether the node has formed a cluster or entered one.
func (id *Identity) Formed() bool {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.doc.Formed
}

// Form gives the node a cluster of its own, which is yet to be formed.
func (id *Identity) Form() error {
	return id.change(func(d *document) { d.ClusterID, d.Forming = Random(), true })
}

// Join makes the node one of a cluster. From here on it talks to no other.
func (id *Identity) Join(cluster string) error {
	return id.change(func(d *document) { d.ClusterID = cluster })
}

// Enter notes that the node has formed its cluster or entered it.
func (id *Identity) Enter() error {
	return id.change(func(d *document) { d.Formed = true })
}

// change makes a change once it is on disk.
func (id *Identity) change(f func(*document)) error {
	id.mu.Lock()
	defer id.mu.Unlock()
	next := id.doc
	f(&next)
	if err := id.saveLocked(next); err != nil {
		return err
	}
	id.doc = next
	return nil
}

// Random returns 128 random bits as hexadecimal digits.
func Random() string {
	var b [16]byte
	_, _ = crand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}

// Exists reports whether dir is a node's data directory.
func Exists(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, fileName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

package plainfile

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"strings"
)

// A hidden database has a name that no user's can have: it begins with a plus sign. It
// goes on with what the database will be called, who loads it, and a random part, so
// that leftovers can be told from loads under way.
const hiddenPrefix = "+"

// IsHidden reports whether a database is one that is being loaded.
func IsHidden(name string) bool { return strings.HasPrefix(name, hiddenPrefix) }

// Names makes the names of hidden databases.
type Names struct {
	NodeID  string
	Process uint32 // random, tells this process from earlier ones of the node
}

// Hidden is a new name for what will be called name.
func (n Names) Hidden(name string) string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // it never fails
	return target(name) + n.owner() + n.process() + fmt.Sprintf("%x", b)
}

func target(name string) string { return hiddenPrefix + digest(name, 16) + "." }
func (n Names) owner() string   { return digest(n.NodeID, 12) + "." }
func (n Names) process() string { return fmt.Sprintf("%08x.", n.Process) }

func digest(s string, digits int) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(s)))[:digits]
}

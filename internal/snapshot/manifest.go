// Package snapshot stores raft's snapshots for databases whose files are the snapshots. A local snapshot is a small manifest that says how far
// each database file had come when it was taken: the files are at least as new, each states its own mark, and replaying what a file holds already
// is harmless. Only a node that needs the data itself, because the log no longer reaches back far enough for it, gets a copy of the files:
// the store copies them locally, lets the writers go on, and streams the copy framed and checksummed.
//
// On disk there are two things. Generations is a row of directories, each with one file per database, of which a pointer file names the live one;
// a received copy becomes a new generation as a whole or not at all. Store is a directory with one manifest per snapshot.
//
// Safety against crashes rests on three orders. A local manifest is published only after the files it speaks of are durable (its writer's duty) and
// older manifests go only after it is published. A received copy is verified whole and synced before its manifest is published as "staged",
// and it becomes the state of the node by one atomic switch of the pointer, which also records which stage it was made of: so Recover
// can tell after a crash whether the switch had happened. And raft is started only after CheckFiles found every file at or past the manifest.
package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/mentasystems/colmena/internal/wire"
)

// Bounds of a manifest. What exceeds them is neither written nor read.
const (
	MaxDatabases      = 65536
	MaxManifestBytes  = 8 << 20
	maxNameBytes      = 256
	maxClusterIDBytes = 256
	maxFileBytes      = 128
)

const (
	kindManifest    = 'M'
	manifestVersion = 1
	manifestHead    = 6 // kind, version, length of the body
	manifestSum     = 4
)

var (
	// ErrDamaged: bytes are not what was written, or were never meant for this decoder.
	ErrDamaged = errors.New("snapshot: data is damaged")
	// ErrVersion: the data is of a newer format than this program reads.
	ErrVersion = errors.New("snapshot: data has a format version this program does not know")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Database is one database of a manifest.
type Database struct {
	// Name is the database's name.
	Name string
	// Incarnation tells this database from earlier ones of the same name.
	Incarnation uint64
	// Mark is the last entry known to be in the file. The file may hold later ones.
	Mark wire.Mark
	// File is the base name of the file in its generation's directory: [a-z0-9._-] only.
	File string
}

// Manifest says which databases there are and how far each had come. It is what FSMSnapshot.Persist writes to the sink;
// the store adds what raft knows (index, term, configuration).
type Manifest struct {
	ClusterID string
	Databases []Database
}

// Encode returns the manifest's bytes: kind, version, length, body, CRC-32C of all before it. Check says whether they would be read back.
func (m *Manifest) Encode() []byte {
	b := []byte{kindManifest, manifestVersion, 0, 0, 0, 0}
	b = appendString(b, m.ClusterID)
	b = binary.AppendUvarint(b, uint64(len(m.Databases)))
	for _, d := range m.Databases {
		b = appendString(b, d.Name)
		b = appendString(b, d.File)
		b = binary.AppendUvarint(b, d.Incarnation)
		b = binary.AppendUvarint(b, d.Mark.Term)
		b = binary.AppendUvarint(b, d.Mark.Index)
	}
	binary.LittleEndian.PutUint32(b[2:], uint32(len(b)-manifestHead))
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// Check reports what makes the manifest impossible to store: too many databases, bad file names, a name or a file twice.
func (m *Manifest) Check() error {
	if len(m.ClusterID) > maxClusterIDBytes {
		return fmt.Errorf("snapshot: cluster ID of %d bytes, at most %d are allowed", len(m.ClusterID), maxClusterIDBytes)
	}
	if len(m.Databases) > MaxDatabases {
		return fmt.Errorf("snapshot: %d databases, at most %d are allowed", len(m.Databases), MaxDatabases)
	}
	names, files := make(map[string]bool, len(m.Databases)), make(map[string]bool, len(m.Databases))
	size := manifestHead + manifestSum + len(m.ClusterID) + 2*binary.MaxVarintLen64
	for _, d := range m.Databases {
		if len(d.Name) > maxNameBytes {
			return fmt.Errorf("snapshot: database name of %d bytes, at most %d are allowed", len(d.Name), maxNameBytes)
		}
		if err := checkFileName(d.File); err != nil {
			return err
		}
		if names[d.Name] || files[d.File] {
			return fmt.Errorf("snapshot: database %q (file %s) is listed twice", d.Name, d.File)
		}
		names[d.Name], files[d.File] = true, true
		size += len(d.Name) + len(d.File) + 5*binary.MaxVarintLen64
	}
	if size > MaxManifestBytes {
		return fmt.Errorf("snapshot: a manifest of %d databases is too large", len(m.Databases))
	}
	return nil
}

// DecodeManifest reads what Encode wrote. Nothing is allocated beyond the size of b.
func DecodeManifest(b []byte) (*Manifest, error) {
	if len(b) < manifestHead+manifestSum || len(b) > MaxManifestBytes || b[0] != kindManifest {
		return nil, fmt.Errorf("%w: not a manifest", ErrDamaged)
	}
	if b[1] == 0 || b[1] > manifestVersion {
		return nil, fmt.Errorf("%w: manifest version %d, at most %d is known", ErrVersion, b[1], manifestVersion)
	}
	body, sum := b[:len(b)-manifestSum], binary.LittleEndian.Uint32(b[len(b)-manifestSum:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, fmt.Errorf("%w: the manifest's checksum does not match", ErrDamaged)
	}
	if uint64(binary.LittleEndian.Uint32(b[2:])) != uint64(len(body)-manifestHead) {
		return nil, fmt.Errorf("%w: the manifest's length does not match", ErrDamaged)
	}
	r := byteReader{b: body[manifestHead:]}
	m := &Manifest{ClusterID: r.text(maxClusterIDBytes)}
	const smallest = 5 // two empty strings and three numbers of one byte each
	n := r.number()
	if n > MaxDatabases || n > uint64(len(r.b)/smallest) {
		return nil, fmt.Errorf("%w: the manifest claims %d databases", ErrDamaged, n)
	}
	for range n {
		m.Databases = append(m.Databases, Database{
			Name: r.text(maxNameBytes), File: r.text(maxFileBytes),
			Incarnation: r.number(), Mark: wire.Mark{Term: r.number(), Index: r.number()},
		})
	}
	if r.bad || len(r.b) != 0 {
		return nil, fmt.Errorf("%w: the manifest's body is malformed", ErrDamaged)
	}
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return m, nil
}

// checkFileName admits plain base names only, so that no name leads out of a directory, and none that SQLite would take for a file beside another.
func checkFileName(name string) error {
	ok := name != "" && len(name) <= maxFileBytes && name[0] != '.' && name[0] != '-'
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-')
	}
	for _, suffix := range sidecars {
		if len(name) >= len(suffix) && name[len(name)-len(suffix):] == suffix {
			ok = false
		}
	}
	if !ok {
		return fmt.Errorf("snapshot: %q cannot be the name of a database file: letters a-z, digits, '.', '_' and '-', at most %d", name, maxFileBytes)
	}
	return nil
}

// sidecars are the endings of the files that SQLite keeps beside a database.
var sidecars = []string{"-wal", "-shm", "-journal"}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// byteReader reads numbers and texts; after the first malformed one everything is zero and bad is set.
type byteReader struct {
	b   []byte
	bad bool
}

func (r *byteReader) number() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || r.bad {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *byteReader) text(limit int) string {
	n := r.number()
	if n > uint64(limit) || n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

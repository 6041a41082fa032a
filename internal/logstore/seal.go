package logstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/hashicorp/raft"
)

// Bolt has no checksum over its pages. A flipped bit in an entry's term, or in the vote, would be believed; so the store adds one to
// everything it hands to raft-boltdb and takes it off again. The encoding stays raft-boltdb's.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sealVersion is the last byte of everything sealed.
const sealVersion = 1

// sealBytes is what sealing adds: CRC-32C, version.
const sealBytes = 5

// sealEntry returns the entry as it is stored: its checksum at the end of its extensions, which raft keeps for layers such as this one. It
// covers index, term, type, data and extensions, not AppendedAt, which only metrics use and whose encoding need not round-trip.
func sealEntry(entry *raft.Log) *raft.Log {
	stored := *entry
	stored.Extensions = make([]byte, 0, len(entry.Extensions)+sealBytes)
	stored.Extensions = append(stored.Extensions, entry.Extensions...)
	stored.Extensions = appendSeal(stored.Extensions, sumEntry(entry))
	return &stored
}

// unsealEntry makes the stored entry the original again, in place, and checks that it is the one that belongs at index.
func unsealEntry(index uint64, stored *raft.Log) error {
	ext, sum, ok := cutSeal(stored.Extensions)
	if !ok {
		return fmt.Errorf("entry %d has no checksum", index)
	}
	stored.Extensions = ext
	if stored.Index != index || sumEntry(stored) != sum {
		return fmt.Errorf("the checksum of entry %d does not match", index)
	}
	return nil
}

func sumEntry(entry *raft.Log) uint32 {
	var head [8 + 8 + 1 + 8]byte
	binary.BigEndian.PutUint64(head[0:], entry.Index)
	binary.BigEndian.PutUint64(head[8:], entry.Term)
	head[16] = byte(entry.Type)
	binary.BigEndian.PutUint64(head[17:], uint64(len(entry.Data)))
	sum := crc32.Checksum(head[:], castagnoli)
	sum = crc32.Update(sum, castagnoli, entry.Data)
	return crc32.Update(sum, castagnoli, entry.Extensions)
}

// sealValue returns a stable value as it is stored. The checksum covers the key too.
func sealValue(key, value []byte) []byte {
	stored := make([]byte, 0, len(value)+sealBytes)
	stored = append(stored, value...)
	return appendSeal(stored, sumValue(key, value))
}

func unsealValue(key, stored []byte) ([]byte, error) {
	value, sum, ok := cutSeal(stored)
	if !ok || sumValue(key, value) != sum {
		return nil, fmt.Errorf("the checksum of the value of %q does not match", key)
	}
	return value, nil
}

func sumValue(key, value []byte) uint32 {
	sum := crc32.Checksum(binary.BigEndian.AppendUint64(nil, uint64(len(key))), castagnoli)
	sum = crc32.Update(sum, castagnoli, key)
	return crc32.Update(sum, castagnoli, value)
}

func appendSeal(b []byte, sum uint32) []byte {
	return append(binary.BigEndian.AppendUint32(b, sum), sealVersion)
}

// cutSeal splits what appendSeal joined. An empty rest is nil.
func cutSeal(b []byte) (rest []byte, sum uint32, ok bool) {
	n := len(b) - sealBytes
	if n < 0 || b[len(b)-1] != sealVersion {
		return nil, 0, false
	}
	if n > 0 {
		rest = b[:n:n]
	}
	return rest, binary.BigEndian.Uint32(b[n:]), true
}

func encodeUint64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func decodeUint64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

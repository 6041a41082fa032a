package durable

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
)

// A document is one header line and a JSON body:
//
//	colmena-doc <kind> <version> <body bytes> <checksum>\n
//	{"...": ...}
//
// The checksum is the CRC-32C, in eight hexadecimal digits, of the header up to and including the space before it, followed by the body. So a
// change of any byte of the file is found, the version's included. The header has one spelling only.
const docMagic = "colmena-doc"

// MaxDocBytes bounds a document, header included.
const MaxDocBytes = 16 << 20

// maxDocHeader bounds the header line: magic, a kind, and three numbers.
const maxDocHeader = 160

// maxDocKind bounds a kind's name.
const maxDocKind = 64

var (
	// ErrDamaged: the document is not what was written: cut, changed, or not a document of this kind at all.
	ErrDamaged = errors.New("file is damaged")
	// ErrVersion: the document is intact but was written by a newer version of the program than this one.
	ErrVersion = errors.New("file has a format version this program does not know")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// SaveDoc writes v as a document, whole or not at all (see WriteFile), readable by its owner only. kind is a name of lower-case letters, digits and
// dashes; version is at least 1 and grows with every change of v's fields, because LoadDoc refuses fields it does not know.
func SaveDoc(path, kind string, version int, v any) error {
	data, err := EncodeDoc(kind, version, v)
	if err != nil {
		return fmt.Errorf("durable: %s: %w", path, err)
	}
	return WriteFile(path, data, 0o600)
}

// LoadDoc reads what SaveDoc wrote into v. A file that is not there is os.ErrNotExist; a damaged one is ErrDamaged; one
// with a version above maxVersion is ErrVersion. v is untouched unless the checksum was right.
func LoadDoc(path, kind string, maxVersion int, v any) error {
	data, err := ReadFileMax(path, MaxDocBytes)
	if errors.Is(err, ErrTooLarge) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return err
	}
	if _, err := DecodeDoc(data, kind, maxVersion, v); err != nil {
		return fmt.Errorf("colmena: %s: %w", path, err)
	}
	return nil
}

// EncodeDoc returns the bytes of a document.
func EncodeDoc(kind string, version int, v any) ([]byte, error) {
	if !validKind(kind) || version < 1 {
		return nil, fmt.Errorf("a document cannot have kind %q and version %d", kind, version)
	}
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	head := docHead(kind, version, len(body))
	data := make([]byte, 0, len(head)+9+len(body))
	data = append(data, head...)
	data = fmt.Appendf(data, "%08x\n", docSum(head, body))
	data = append(data, body...)
	if len(data) > MaxDocBytes {
		return nil, fmt.Errorf("a %s document of %d bytes, at most %d are allowed: %w", kind, len(data), MaxDocBytes, ErrTooLarge)
	}
	return data, nil
}

// DecodeDoc is LoadDoc for bytes, and also returns the version the document was written with.
func DecodeDoc(data []byte, kind string, maxVersion int, v any) (version int, err error) {
	gotKind, version, body, err := splitDoc(data)
	switch {
	case err != nil:
		return 0, err
	case gotKind != kind:
		return 0, fmt.Errorf("%w: it is a %q document, a %q one belongs here", ErrDamaged, gotKind, kind)
	case version > maxVersion:
		return version, fmt.Errorf("%w: version %d of %q, at most %d is known here: run the newer program", ErrVersion, version, kind, maxVersion)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return version, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return version, fmt.Errorf("%w: more than one value", ErrDamaged)
	}
	return version, nil
}

// splitDoc takes a document apart and checks everything but the meaning of kind, version and body.
func splitDoc(data []byte) (kind string, version int, body []byte, err error) {
	damaged := func(why string) (string, int, []byte, error) {
		return "", 0, nil, fmt.Errorf("%w: %s", ErrDamaged, why)
	}
	if len(data) == 0 {
		return damaged("it is empty")
	}
	end := bytes.IndexByte(data[:min(len(data), maxDocHeader)], '\n')
	if end < 0 {
		return damaged("no header line")
	}
	fields := strings.Split(string(data[:end]), " ")
	if len(fields) != 5 || fields[0] != docMagic || !validKind(fields[1]) {
		return damaged("the header is not a document's")
	}
	version, verr := strconv.Atoi(fields[2])
	size, serr := strconv.Atoi(fields[3])
	if verr != nil || serr != nil || version < 1 || size < 0 {
		return damaged("the header's numbers are none")
	}
	body = data[end+1:]
	if len(body) != size {
		return damaged(fmt.Sprintf("%d bytes follow the header, it states %d", len(body), size))
	}
	head := docHead(fields[1], version, size)
	if fmt.Sprintf("%s%08x", head, docSum(head, body)) != string(data[:end]) {
		return damaged("the checksum does not match")
	}
	return fields[1], version, body, nil
}

// docHead is the header line up to the checksum.
func docHead(kind string, version, size int) string {
	return fmt.Sprintf("%s %s %d %d ", docMagic, kind, version, size)
}

func docSum(head string, body []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte(head), castagnoli), castagnoli, body)
}

func validKind(kind string) bool {
	if kind == "" || len(kind) > maxDocKind {
		return false
	}
	for _, c := range []byte(kind) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

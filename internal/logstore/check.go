package logstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"slices"
)

// Bolt maps its file and trusts it: a page number that points past the end is a fault that ends the process, and so is a panic on the
// goroutine on which it walks the tree to rebuild its freelist. So the file is read by position before bolt maps it, and every
// page that can be reached is held to bolt's layout, which has one form only: elements first, keys and values behind them without a
// gap. That finds every change of a page's structure; the changes of keys and values are found by the checksums (seal.go).

// Bolt's format, version 2: integers in the machine's byte order.
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHeaderBytes = 16
	elementBytes    = 16
	bucketBytes     = 16
	metaBytes       = 64

	flagBranch = 0x01
	flagLeaf   = 0x02
	flagMeta   = 0x04

	elementIsBucket = 0x01

	noFreelist = ^uint64(0)

	minPageBytes = 1 << 10
	maxPageBytes = 1 << 24
	maxKeyBytes  = 32768
	maxTreeDepth = 64
	maxRuns      = 1 << 16
	maxStable    = 1 << 10
)

// The buckets of raft-boltdb.
const (
	logsBucket   = "logs"
	stableBucket = "conf"
)

// run is a row of entries without a gap.
type run struct{ first, last uint64 }

// layout is what a checked file was found to hold.
type layout struct {
	runs   []run    // entries, ascending
	stable [][]byte // keys of the stable values
}

// meta is one of bolt's two root pages.
type meta struct {
	pageBytes uint32
	root      uint64
	freelist  uint64
	end       uint64 // first page number that is not in use
	txid      uint64
}

// checkFile reads the structure of a bolt file. Any error but one of reading is a *DamagedError.
func checkFile(f *os.File, path string) (*layout, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("colmena: log store: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, &DamagedError{Path: path, Reason: "it is no regular file"}
	}
	l, err := checkReader(f, info.Size())
	var bad structureError
	switch {
	case errors.As(err, &bad):
		return nil, &DamagedError{Path: path, Reason: string(bad)}
	case err != nil:
		return nil, fmt.Errorf("colmena: reading the log store %s: %w", path, err)
	}
	return l, nil
}

// structureError says what is wrong with the file.
type structureError string

func (e structureError) Error() string { return string(e) }

func structuref(format string, args ...any) error {
	return structureError(fmt.Sprintf(format, args...))
}

// checkReader is checkFile for anything of a known size.
func checkReader(r io.ReaderAt, size int64) (*layout, error) {
	m, err := readMetas(r, size)
	if err != nil {
		return nil, err
	}
	c := &checker{r: r, pageBytes: uint64(m.pageBytes), end: m.end, seen: make([]uint64, m.end/64+1)}
	root, err := c.bucket(m.root)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{logsBucket, stableBucket} {
		if !slices.Contains(root, name) {
			return nil, structuref("it has no bucket %q: it is not a log store", name)
		}
	}
	return &c.found, nil
}

// readMetas reads both meta pages and returns the newer one. Both must be intact: a meta page is written into one sector, which a power
// cut does not tear, so one that does not add up was damaged later, and the other would silently take back the last write, which may be a vote or
// an acknowledged entry.
func readMetas(r io.ReaderAt, size int64) (meta, error) {
	if size == 0 {
		return meta{}, structuref("it is empty")
	}
	first, err := readMeta(r, size, 0, 0)
	if err != nil {
		return meta{}, err
	}
	if size < 4*int64(first.pageBytes) {
		return meta{}, structuref("%d bytes are fewer than the four pages every store has", size)
	}
	second, err := readMeta(r, size, 1, int64(first.pageBytes))
	if err != nil {
		return meta{}, err
	}
	if first.pageBytes != second.pageBytes {
		return meta{}, structuref("its meta pages state page sizes of %d and %d", first.pageBytes, second.pageBytes)
	}
	m := first
	if second.txid > first.txid {
		m = second
	}
	switch {
	case m.end > uint64(size)/uint64(m.pageBytes):
		return meta{}, structuref("it is cut: %d pages are in use, %d bytes are there", m.end, size)
	case m.root < 2 || m.root >= m.end:
		return meta{}, structuref("its root page %d is out of range", m.root)
	case m.freelist != noFreelist:
		return meta{}, structuref("it was written by another program: it holds a freelist")
	}
	return m, nil
}

func readMeta(r io.ReaderAt, size int64, number uint64, at int64) (meta, error) {
	if size < at+pageHeaderBytes+metaBytes {
		return meta{}, structuref("%d bytes do not hold its meta pages", size)
	}
	var b [pageHeaderBytes + metaBytes]byte
	if _, err := r.ReadAt(b[:], at); err != nil {
		return meta{}, readError(err)
	}
	order := binary.NativeEndian
	body := b[pageHeaderBytes:]
	sum := fnv.New64a()
	sum.Write(body[:metaBytes-8])
	m := meta{
		pageBytes: order.Uint32(body[8:]),
		root:      order.Uint64(body[16:]),
		freelist:  order.Uint64(body[32:]),
		end:       order.Uint64(body[40:]),
		txid:      order.Uint64(body[48:]),
	}
	switch {
	case order.Uint32(body) != boltMagic:
		return meta{}, structuref("meta page %d: this is no bolt file", number)
	case order.Uint32(body[4:]) != boltVersion:
		return meta{}, structuref("meta page %d: bolt format %d is not known", number, order.Uint32(body[4:]))
	case order.Uint64(body[metaBytes-8:]) != sum.Sum64():
		return meta{}, structuref("meta page %d: the checksum does not match", number)
	case order.Uint64(b[:]) != number || order.Uint16(b[8:]) != flagMeta || m.txid%2 != number:
		return meta{}, structuref("meta page %d is not in its place", number)
	case m.pageBytes < minPageBytes || m.pageBytes > maxPageBytes || m.pageBytes&(m.pageBytes-1) != 0:
		return meta{}, structuref("meta page %d states a page size of %d", number, m.pageBytes)
	}
	return m, nil
}

// checker walks the trees of one file.
type checker struct {
	r         io.ReaderAt
	pageBytes uint64
	end       uint64
	seen      []uint64 // a bit for each page that something points to
	found     layout
}

// bucket walks the root bucket, whose leaves are the store's buckets, and returns their names.
func (c *checker) bucket(root uint64) ([]string, error) {
	var names []string
	_, err := c.tree(root, 0, span{}, func(p *page, i int) error {
		e := p.element(i)
		key, err := p.key(i)
		if err != nil {
			return err
		}
		name := string(key)
		if e.flags != elementIsBucket || (name != logsBucket && name != stableBucket) {
			return structuref("%q does not belong into a log store", name)
		}
		names = append(names, name)
		return c.store(name, p, i)
	})
	return names, err
}

// store walks the bucket in element i of a page of the root bucket: a tree of its own, or, if it is small, a page within the element's value.
func (c *checker) store(name string, p *page, i int) error {
	e := p.element(i)
	visit := c.entry
	if name == stableBucket {
		visit = c.value
	}
	if e.valueBytes < bucketBytes {
		return structuref("bucket %q is too short", name)
	}
	var head [bucketBytes]byte
	if err := p.read(head[:], e.at+e.keyBytes); err != nil {
		return err
	}
	if root := binary.NativeEndian.Uint64(head[:]); root != 0 {
		if e.valueBytes != bucketBytes {
			return structuref("bucket %q is too long", name)
		}
		_, err := c.tree(root, 0, span{}, visit)
		return err
	}
	inline := &page{c: c, name: fmt.Sprintf("bucket %q", name), at: p.at + e.at + e.keyBytes + bucketBytes, bytes: e.valueBytes - bucketBytes}
	if err := inline.load(); err != nil {
		return err
	}
	if inline.flags != flagLeaf || inline.id != 0 || inline.overflow != 0 {
		return structuref("bucket %q holds no leaf page", name)
	}
	_, err := inline.leaf(span{}, visit)
	return err
}

// entry notes a log entry.
func (c *checker) entry(p *page, i int) error {
	e := p.element(i)
	if e.flags != 0 || e.keyBytes != 8 {
		return structuref("%s: element %d is no log entry", p.name, i)
	}
	key, err := p.key(i)
	if err != nil {
		return err
	}
	index := binary.BigEndian.Uint64(key)
	runs := c.found.runs
	switch {
	case index == 0:
		return structuref("%s holds an entry without an index", p.name)
	case len(runs) > 0 && runs[len(runs)-1].last+1 == index:
		runs[len(runs)-1].last = index
	case len(runs) >= maxRuns:
		return structuref("the log has more than %d gaps", maxRuns)
	default:
		c.found.runs = append(runs, run{index, index})
	}
	return nil
}

// value notes a stable value.
func (c *checker) value(p *page, i int) error {
	key, err := p.key(i)
	if err != nil {
		return err
	}
	if p.element(i).flags != 0 || len(c.found.stable) >= maxStable {
		return structuref("%s: element %d is no stable value", p.name, i)
	}
	c.found.stable = append(c.found.stable, bytes.Clone(key))
	return nil
}

// span is the range of keys a page may hold: from low, below high. nil is no bound.
type span struct{ low, high []byte }

// tree walks the pages below and including number and returns the last key. visit is called for every element of the leaves in order.
func (c *checker) tree(number uint64, depth int, keys span, visit func(*page, int) error) (last []byte, err error) {
	p, err := c.page(number)
	if err != nil {
		return nil, err
	}
	switch {
	case depth > maxTreeDepth:
		return nil, structuref("%s: the tree is deeper than %d pages", p.name, maxTreeDepth)
	case p.flags == flagLeaf && p.count == 0 && depth > 0:
		return nil, structuref("%s: an empty leaf", p.name)
	case p.flags == flagLeaf:
		return p.leaf(keys, visit)
	case p.flags != flagBranch || p.count == 0:
		return nil, structuref("%s is neither branch nor leaf", p.name)
	}
	low := keys.low
	for i := range p.count {
		key, err := p.orderedKey(i, low, i > 0, keys.high)
		if err != nil {
			return nil, err
		}
		high := keys.high
		if i+1 < p.count {
			if high, err = p.key(i + 1); err != nil {
				return nil, err
			}
		}
		if low, err = c.tree(p.element(i).child, depth+1, span{key, high}, visit); err != nil {
			return nil, err
		}
	}
	return low, nil
}

// page reads the page of that number, which must be in use and referred to once.
func (c *checker) page(number uint64) (*page, error) {
	if number < 2 || number >= c.end {
		return nil, structuref("page %d is out of range", number)
	}
	p := &page{c: c, name: fmt.Sprintf("page %d", number), at: number * c.pageBytes, bytes: c.pageBytes}
	var head [pageHeaderBytes]byte
	if err := p.read(head[:], 0); err != nil {
		return nil, err
	}
	overflow := uint64(binary.NativeEndian.Uint32(head[12:]))
	if overflow >= c.end-number {
		return nil, structuref("%s runs past the end", p.name)
	}
	for n := number; n <= number+overflow; n++ {
		if c.seen[n/64]&(1<<(n%64)) != 0 {
			return nil, structuref("page %d is referred to twice", n)
		}
		c.seen[n/64] |= 1 << (n % 64)
	}
	p.bytes = (overflow + 1) * c.pageBytes
	if err := p.load(); err != nil {
		return nil, err
	}
	if p.id != number {
		return nil, structuref("%s says it is page %d", p.name, p.id)
	}
	return p, nil
}

// readError makes a file that ends early a finding.
func readError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return structuref("it ends early")
	}
	return err
}

package logstore

import (
	"bytes"
	"encoding/binary"
)

// page is one page of the file with its overflow, or a small bucket's page within a value.
type page struct {
	c     *checker
	name  string // for messages
	at    uint64 // where it begins in the file
	bytes uint64 // what it occupies

	id       uint64
	flags    uint16
	count    int
	overflow uint32

	// head is the beginning of the page: header, elements and, unless there is overflow, all the rest.
	head []byte
}

// element is one entry of a page's table. at is the offset of its key within the page; the value follows the key.
type element struct {
	flags      uint32 // leaf
	child      uint64 // branch
	at         uint64
	keyBytes   uint64
	valueBytes uint64 // 0 in a branch
}

// read reads from the page by position. The bounds are its own.
func (p *page) read(b []byte, at uint64) error {
	if at > p.bytes || uint64(len(b)) > p.bytes-at {
		return structuref("%s: a reference leads out of it", p.name)
	}
	if at+uint64(len(b)) <= uint64(len(p.head)) {
		copy(b, p.head[at:])
		return nil
	}
	if _, err := p.c.r.ReadAt(b, int64(p.at+at)); err != nil {
		return readError(err)
	}
	return nil
}

// load reads header and elements and checks the layout: each element's key begins where the one before it ends, the first right behind the
// table. So a changed count, position or size shows, except the last value's size, which the value's checksum covers.
func (p *page) load() error {
	var head [pageHeaderBytes]byte
	if err := p.read(head[:], 0); err != nil {
		return err
	}
	order := binary.NativeEndian
	p.id = order.Uint64(head[:])
	p.flags = order.Uint16(head[8:])
	p.count = int(order.Uint16(head[10:]))
	p.overflow = order.Uint32(head[12:])
	table := uint64(pageHeaderBytes + p.count*elementBytes)
	if table > p.bytes {
		return structuref("%s: %d elements do not fit into it", p.name, p.count)
	}
	// At most 1 MiB of table, or one page.
	b := make([]byte, min(p.bytes, max(table, p.c.pageBytes)))
	if err := p.read(b, 0); err != nil {
		return err
	}
	p.head = b
	if p.count == 0 && bytes.ContainsFunc(b[pageHeaderBytes:], func(r rune) bool { return r != 0 }) {
		return structuref("%s is empty but for what it held", p.name)
	}
	next := table
	for i := range p.count {
		e := p.element(i)
		if e.at != next || e.keyBytes == 0 || e.keyBytes > maxKeyBytes || e.keyBytes+e.valueBytes > p.bytes-next {
			return structuref("%s: element %d is not in its place", p.name, i)
		}
		next += e.keyBytes + e.valueBytes
	}
	return nil
}

// element decodes entry i of the table, which load has read.
func (p *page) element(i int) element {
	order := binary.NativeEndian
	at := uint64(pageHeaderBytes + i*elementBytes)
	b := p.head[at : at+elementBytes]
	if p.flags == flagBranch {
		return element{at: at + uint64(order.Uint32(b)), keyBytes: uint64(order.Uint32(b[4:])), child: order.Uint64(b[8:])}
	}
	return element{
		flags:      order.Uint32(b),
		at:         at + uint64(order.Uint32(b[4:])),
		keyBytes:   uint64(order.Uint32(b[8:])),
		valueBytes: uint64(order.Uint32(b[12:])),
	}
}

// key returns the key of element i, whose bounds load has checked.
func (p *page) key(i int) ([]byte, error) {
	e := p.element(i)
	if e.at+e.keyBytes <= uint64(len(p.head)) {
		return p.head[e.at : e.at+e.keyBytes], nil
	}
	key := make([]byte, e.keyBytes)
	return key, p.read(key, e.at)
}

// orderedKey returns key i, which must be at least low (above it if strict) and below high.
func (p *page) orderedKey(i int, low []byte, strict bool, high []byte) ([]byte, error) {
	key, err := p.key(i)
	if err != nil {
		return nil, err
	}
	order := bytes.Compare(key, low)
	if (low != nil && (order < 0 || order == 0 && strict)) || (high != nil && bytes.Compare(key, high) >= 0) {
		return nil, structuref("%s: the key of element %d is out of order", p.name, i)
	}
	return key, nil
}

// leaf visits the elements of a leaf and returns the last key, nil for an empty page.
func (p *page) leaf(keys span, visit func(*page, int) error) (last []byte, err error) {
	for i := range p.count {
		low := keys.low
		if i > 0 {
			low = last
		}
		if last, err = p.orderedKey(i, low, i > 0, keys.high); err != nil {
			return nil, err
		}
		if err := visit(p, i); err != nil {
			return nil, err
		}
	}
	return last, nil
}

package membership

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
)

// Bounds of what a member says of itself. They are those of the formats that carry it.
const (
	MaxIDBytes   = 256
	MaxAddrBytes = 512
)

// ValidateID checks a node ID: 1 to 256 letters, digits, '.', '_', '-' or ':', the first a letter or digit, so that it can
// stand in logs, configuration and file names of any system.
func ValidateID(id string) error {
	if id == "" {
		return fmt.Errorf("%w: node ID is empty", ErrInvalid)
	}
	return plain("node ID", id)
}

func validateIncarnation(inc string) error {
	if inc == "" {
		return fmt.Errorf("%w: incarnation is empty", ErrInvalid)
	}
	return plain("incarnation", inc)
}

func plain(what, s string) error {
	if len(s) > MaxIDBytes {
		return fmt.Errorf("%w: %s of %d bytes, at most %d are allowed", ErrInvalid, what, len(s), MaxIDBytes)
	}
	for i, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-' && c != ':') {
			return fmt.Errorf("%w: %s %q: letters, digits, '.', '_', '-' and ':' are allowed, the first must be a letter or digit", ErrInvalid, what, s)
		}
	}
	return nil
}

// ValidateAddr checks an address that others are to dial: "host:port" with a host that means this machine to them too, which 0.0.0.0
// and [::] do not, and a port of 1 to 65535.
func ValidateAddr(addr string) error {
	if len(addr) > MaxAddrBytes {
		return fmt.Errorf("%w: address of %d bytes, at most %d are allowed", ErrInvalid, len(addr), MaxAddrBytes)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%w: address %q: %w", ErrInvalid, addr, err)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%w: address %q: the port must be a number from 1 to 65535", ErrInvalid, addr)
	}
	if host == "" {
		return fmt.Errorf("%w: address %q has no host: name the one under which other nodes reach this one", ErrInvalid, addr)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.IsUnspecified() {
			return fmt.Errorf("%w: address %q: other nodes cannot dial %s: advertise an address of this machine", ErrInvalid, addr, host)
		}
		return nil
	}
	for _, c := range []byte(host) {
		if c <= ' ' || c >= 0x7f || c == '/' || c == '@' || c == '%' {
			return fmt.Errorf("%w: address %q: %q cannot be part of a host name", ErrInvalid, addr, c)
		}
	}
	return nil
}

// CheckAddresses reports what is wrong with where a node listens, where others dial it and whom it asks for entrance, each by the name of its setting.
func CheckAddresses(bind, advertise string, join []string, bad func(format string, args ...any)) {
	if bind == "" {
		if advertise != "" {
			bad("Advertise %q means nothing without Bind", advertise)
		}
		if len(join) > 0 {
			bad("Join needs Bind: the cluster must be able to reach this node")
		}
		return
	}
	if _, _, err := net.SplitHostPort(bind); err != nil {
		bad("Bind %q is not host:port: %w", bind, err)
	}
	if advertise != "" {
		if _, _, err := net.SplitHostPort(advertise); err != nil {
			bad("Advertise %q is not host:port: %w", advertise, err)
		}
	}
	for i, a := range join {
		if err := ValidateAddr(a); err != nil {
			bad("Join[%d]: %w", i, err)
		}
	}
}

// The command log-verifier checks an export of an audit log with libraries that this project did not
// write: C2SP signed notes and cosignatures, the tree and its proofs of RFC 9162 by two of them.
//
//	log-verifier EXPORT LOG-VKEY WITNESS-VKEY [REQUEST]
//	log-verifier inclusion PROOF LOG-VKEY
//	log-verifier consistency PROOF LOG-VKEY CHECKPOINT
//
// REQUEST is the body of a request to a witness (C2SP tlog-witness), and so is a proof of consistency,
// from the older checkpoint in the file CHECKPOINT. A proof of inclusion is that of C2SP tlog-proof, with
// the record as extra data. It prints what it verified as one JSON object, or one line with the first
// fault, and exits with 1.
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/transparency-dev/formats/log"
	fnote "github.com/transparency-dev/formats/note"
	fproof "github.com/transparency-dev/formats/proof"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type line struct {
	Type     string   `json:"type"`
	Origin   string   `json:"origin"`
	Call     *string  `json:"correlation_id"`
	Leaf     string   `json:"leaf"`
	LeafHash string   `json:"leaf_hash"`
	Index    int64    `json:"log_index"`
	Proof    []string `json:"proof"`
	Note     string   `json:"note"`
	Size     int64    `json:"size"`
}

// proven is what a proof outside an export shows.
type proven struct {
	Index  uint64 `json:"index"`
	Old    uint64 `json:"old"`
	Size   uint64 `json:"size"`
	Record string `json:"record"`
}

type verdict struct {
	Records     int    `json:"records"`
	Checkpoints int    `json:"checkpoints"`
	Size        int64  `json:"size"`
	Root        string `json:"root"`
	Cosigned    int64  `json:"cosigned"`
	CosignedAt  int64  `json:"cosigned_at"`
	Inclusions  int    `json:"inclusions"`
	Requested   int64  `json:"requested_from"`
}

// stored are the hashes of a tree as tlog keeps them.
type stored []tlog.Hash

func (s stored) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	found := make([]tlog.Hash, 0, len(indexes))
	for _, index := range indexes {
		if index >= int64(len(s)) {
			return nil, fmt.Errorf("hash %d is not in the export", index)
		}
		found = append(found, s[index])
	}
	return found, nil
}

type verifier struct {
	log, witness note.Verifier
	header       line
	hashes       stored
	records      []line
	found        verdict
	points       []*log.Checkpoint
}

func (v *verifier) read(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 1<<24)
	for number := 1; scanner.Scan(); number++ {
		var one line
		if err := json.Unmarshal(scanner.Bytes(), &one); err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
		if err := v.take(one); err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
	}
	return scanner.Err()
}

func (v *verifier) take(one line) error {
	switch one.Type {
	case "log":
		v.header = one
	case "record":
		return v.record(one)
	case "checkpoint":
		return v.checkpoint(one)
	default:
		return fmt.Errorf("type %q", one.Type)
	}
	return nil
}

func (v *verifier) record(one line) error {
	hash := tlog.RecordHash([]byte(one.Leaf))
	if hex.EncodeToString(hash[:]) != one.LeafHash {
		return fmt.Errorf("record %d has another hash", one.Index)
	}
	v.records = append(v.records, one)
	v.found.Records++
	if v.header.Call != nil {
		return nil
	}
	hashes, err := tlog.StoredHashesForRecordHash(one.Index, hash, v.hashes)
	if err != nil {
		return err
	}
	if tlog.StoredHashIndex(0, one.Index) != int64(len(v.hashes)) {
		return fmt.Errorf("record %d is not in its place", one.Index)
	}
	v.hashes = append(v.hashes, hashes...)
	return nil
}

func (v *verifier) checkpoint(one line) error {
	point, _, signed, err := log.ParseCheckpoint([]byte(one.Note), v.header.Origin, v.log, v.witness)
	if err != nil {
		return err
	}
	if int64(point.Size) != one.Size {
		return fmt.Errorf("the note is of size %d", point.Size)
	}
	for _, signature := range signed.Sigs {
		if signature.Name != v.witness.Name() || signature.Hash != v.witness.KeyHash() {
			continue
		}
		moment, err := fnote.CoSigV1Timestamp(signature)
		if err != nil {
			return err
		}
		v.found.Cosigned, v.found.CosignedAt = one.Size, moment.Unix()
	}
	if v.header.Call == nil {
		if err := v.extends(point); err != nil {
			return err
		}
	}
	v.points = append(v.points, point)
	v.found.Checkpoints++
	v.found.Size, v.found.Root = one.Size, hex.EncodeToString(point.Hash)
	return nil
}

// extends compares a checkpoint with the records, and with the checkpoint before it.
func (v *verifier) extends(point *log.Checkpoint) error {
	root, err := tlog.TreeHash(int64(point.Size), v.hashes)
	if err != nil {
		return err
	}
	if !bytes.Equal(root[:], point.Hash) {
		return fmt.Errorf("the records have another root at size %d", point.Size)
	}
	if len(v.points) == 0 {
		return nil
	}
	before := v.points[len(v.points)-1]
	steps, err := tlog.ProveTree(int64(point.Size), int64(before.Size), v.hashes)
	if err != nil {
		return err
	}
	return consistent(before.Size, point.Size, octets(steps), before.Hash, point.Hash)
}

// inclusions checks the proof of each record of one call by both libraries.
func (v *verifier) inclusions() error {
	newest := v.points[len(v.points)-1]
	for _, one := range v.records {
		if one.Proof == nil {
			continue
		}
		steps := make([][]byte, len(one.Proof))
		for number, text := range one.Proof {
			step, err := hex.DecodeString(text)
			if err != nil {
				return err
			}
			steps[number] = step
		}
		hash := tlog.RecordHash([]byte(one.Leaf))
		err := proof.VerifyInclusion(
			rfc6962.DefaultHasher, uint64(one.Index), newest.Size, hash[:], steps, newest.Hash)
		if err != nil {
			return fmt.Errorf("record %d: %w", one.Index, err)
		}
		err = tlog.CheckRecord(
			hashed(steps), int64(newest.Size), tlog.Hash(newest.Hash), one.Index, hash)
		if err != nil {
			return fmt.Errorf("record %d: %w", one.Index, err)
		}
		v.found.Inclusions++
	}
	return nil
}

// request checks the consistency proof that a witness gets, against the records of the export.
func (v *verifier) request(name string) error {
	old, steps, signed, err := parseRequest(name)
	if err != nil {
		return err
	}
	point, _, _, err := log.ParseCheckpoint(signed, v.header.Origin, v.log)
	if err != nil {
		return err
	}
	root, err := tlog.TreeHash(old, v.hashes)
	if err != nil {
		return err
	}
	v.found.Requested = old
	return consistent(uint64(old), point.Size, steps, root[:], point.Hash)
}

func consistent(old, size uint64, steps [][]byte, oldRoot, root []byte) error {
	err := proof.VerifyConsistency(rfc6962.DefaultHasher, old, size, steps, oldRoot, root)
	if err != nil {
		return err
	}
	return tlog.CheckTree(hashed(steps), int64(size), tlog.Hash(root), int64(old), tlog.Hash(oldRoot))
}

func octets(hashes []tlog.Hash) [][]byte {
	found := make([][]byte, len(hashes))
	for number := range hashes {
		found[number] = hashes[number][:]
	}
	return found
}

func hashed(steps [][]byte) []tlog.Hash {
	found := make([]tlog.Hash, len(steps))
	for number, step := range steps {
		copy(found[number][:], step)
	}
	return found
}

// included checks a proof of inclusion: the checkpoint's signature, then the path by both libraries.
func included(name string, key note.Verifier) (*proven, error) {
	octets, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var one fproof.TLogProof
	if err := one.Unmarshal(octets); err != nil {
		return nil, err
	}
	point, _, _, err := log.ParseCheckpoint(one.Checkpoint, key.Name(), key)
	if err != nil {
		return nil, err
	}
	steps := make([][]byte, len(one.Hashes))
	for number := range one.Hashes {
		steps[number] = one.Hashes[number][:]
	}
	hash := tlog.RecordHash(one.ExtraData)
	err = proof.VerifyInclusion(
		rfc6962.DefaultHasher, one.Index, point.Size, hash[:], steps, point.Hash)
	if err != nil {
		return nil, err
	}
	err = tlog.CheckRecord(
		hashed(steps), int64(point.Size), tlog.Hash(point.Hash), int64(one.Index), hash)
	return &proven{Index: one.Index, Size: point.Size, Record: string(one.ExtraData)}, err
}

// continued checks a proof of consistency from a checkpoint that was kept.
func continued(name string, key note.Verifier, kept string) (*proven, error) {
	octets, err := os.ReadFile(kept)
	if err != nil {
		return nil, err
	}
	old, _, _, err := log.ParseCheckpoint(octets, key.Name(), key)
	if err != nil {
		return nil, err
	}
	from, steps, signed, err := parseRequest(name)
	if err != nil {
		return nil, err
	}
	if uint64(from) != old.Size {
		return nil, fmt.Errorf("the proof is from %d, the checkpoint of %d", from, old.Size)
	}
	point, _, _, err := log.ParseCheckpoint(signed, key.Name(), key)
	if err != nil {
		return nil, err
	}
	err = consistent(old.Size, point.Size, steps, old.Hash, point.Hash)
	return &proven{Old: old.Size, Size: point.Size}, err
}

func parseRequest(name string) (int64, [][]byte, []byte, error) {
	body, err := os.ReadFile(name)
	if err != nil {
		return 0, nil, nil, err
	}
	head, signed, _ := strings.Cut(string(body), "\n\n")
	lines := strings.Split(head, "\n")
	var old int64
	if _, err := fmt.Sscanf(lines[0], "old %d", &old); err != nil {
		return 0, nil, nil, err
	}
	steps := make([][]byte, len(lines)-1)
	for number, text := range lines[1:] {
		if steps[number], err = base64.StdEncoding.DecodeString(text); err != nil {
			return 0, nil, nil, err
		}
	}
	return old, steps, []byte(signed), nil
}

// runProof verifies one proof: inclusion PROOF VKEY, or consistency PROOF VKEY CHECKPOINT.
func runProof(arguments []string) (*proven, error) {
	if len(arguments) < 3 {
		return nil, fmt.Errorf("usage: log-verifier inclusion|consistency PROOF LOG-VKEY [CHECKPOINT]")
	}
	key, err := note.NewVerifier(arguments[2])
	if err != nil {
		return nil, err
	}
	if arguments[0] == "inclusion" {
		return included(arguments[1], key)
	}
	if len(arguments) < 4 {
		return nil, fmt.Errorf("a proof of consistency needs the older checkpoint")
	}
	return continued(arguments[1], key, arguments[3])
}

func run(arguments []string) (any, error) {
	if len(arguments) > 0 && (arguments[0] == "inclusion" || arguments[0] == "consistency") {
		return runProof(arguments)
	}
	return runExport(arguments)
}

func runExport(arguments []string) (*verdict, error) {
	if len(arguments) < 3 {
		return nil, fmt.Errorf("usage: log-verifier EXPORT LOG-VKEY WITNESS-VKEY [REQUEST]")
	}
	var v verifier
	var err error
	if v.log, err = note.NewVerifier(arguments[1]); err != nil {
		return nil, err
	}
	if v.witness, err = fnote.NewVerifier(arguments[2]); err != nil {
		return nil, err
	}
	if err := v.read(arguments[0]); err != nil {
		return nil, err
	}
	if len(v.points) == 0 {
		return nil, fmt.Errorf("no checkpoint")
	}
	if err := v.inclusions(); err != nil {
		return nil, err
	}
	if len(arguments) > 3 {
		if err := v.request(arguments[3]); err != nil {
			return nil, err
		}
	}
	return &v.found, nil
}

func main() {
	found, err := run(os.Args[1:])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		os.Exit(2)
	}
}

// Certification requests by node-forge and @peculiar/x509: `node csr.mjs FOLDER` writes one PEM
// file for each case, with the subject CN=dev-<case>.
import "reflect-metadata";
import { writeFileSync } from "node:fs";
import { webcrypto } from "node:crypto";
import forge from "node-forge";
import * as x509 from "@peculiar/x509";

const folder = process.argv[2];

function write(name, pem) {
  writeFileSync(`${folder}/${name}.csr`, pem);
}

function forged(name, digest) {
  const keys = forge.pki.rsa.generateKeyPair(2048);
  const csr = forge.pki.createCertificationRequest();
  csr.publicKey = keys.publicKey;
  csr.setSubject([{ name: "commonName", value: `dev-${name}` }]);
  // Without a digest, node-forge signs with SHA-1.
  csr.sign(keys.privateKey, digest);
  write(name, forge.pki.certificationRequestToPem(csr));
}

async function peculiar(name, algorithm) {
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
  const csr = await x509.Pkcs10CertificateRequestGenerator.create(
    {
      name: `CN=dev-${name}`,
      keys,
      signingAlgorithm: algorithm,
      extensions: [
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
        new x509.ExtendedKeyUsageExtension(["1.3.6.1.5.5.7.3.2"]),
        new x509.SubjectAlternativeNameExtension([{ type: "dns", value: `dev-${name}` }]),
      ],
    },
    webcrypto,
  );
  write(name, csr.toString("pem"));
}

const rsa = { modulusLength: 2048, publicExponent: new Uint8Array([1, 0, 1]), hash: "SHA-256" };
forged("forge-sha256", forge.md.sha256.create());
forged("forge-sha1", undefined);
await peculiar("peculiar-p256", { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" });
await peculiar("peculiar-p384", { name: "ECDSA", namedCurve: "P-384", hash: "SHA-384" });
await peculiar("peculiar-rsa", { name: "RSASSA-PKCS1-v1_5", ...rsa });
await peculiar("peculiar-pss", { name: "RSA-PSS", saltLength: 32, ...rsa });
await peculiar("peculiar-ed25519", { name: "Ed25519" });

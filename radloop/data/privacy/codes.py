"""Short codes, such as modality and view: all their words must be known ones, since names hide anywhere."""

from __future__ import annotations

import re

# Defined terms of DICOM PS3.3 C.7.3.1.1.1 (Modality) and C.8.1.1.1.1 / C.8.3.1 (ViewPosition), of PS3.16
# annex L (BodyPartExamined), and the words that data sets use for the same.
_KNOWN = """
ar au bdus bi bmd cfm cr ct cta ctpa dg dms dr dsa dx dxa ecg eeg es fluoroscopy gm hc io ivoct ivus ker
len ls mammography mg mr mra mri nm oam oct op opm opt opv ot pet petct pr pt px radiograph radiography
ray rf rg rtimage sc seg sm spect srf tg tomography tomosynthesis ultrasound ultrasonography us va x xa
xc xr xray angiography computed magnetic resonance imaging image plain film digital flair dwi adc swi tof
stir diffusion weighted contrast enhanced gadolinium noncontrast pre post with without non and of ap pa
ll rl lao rao lpo rpo lld rld llo rlo cc ml mlo lm lmo xccl xccm fb sio lateral medial oblique frontal
posterior anterior posteroanterior anteroposterior axial coronal sagittal transverse longitudinal xtable
cross table swimmers swimmer decubitus erect supine prone upright portable standing inspiration
expiration view left right bilateral both upper lower proximal distal l r b u abdomen abd abdominal
abdomenpelvis adrenal ankle aorta arm axilla back bladder bone bowel brain breast bronchus buttock
calcaneus calf carotid cerebellum cervix cheek chest chestabdomen chestabdpelvis choroid circle clavicle
coccyx colon cornea coronary cspine ctspine dorsal duodenum ear elbow esophagus extremity eye eyelid face
facial femoral femur finger fingers foot gallbladder gastrointestinal gi genitourinary gu hand head
headneck heart hip humerus iac ileum ilium internal jaw joint jaws kidney knee kub larynx leg liver
lspine lslumbar lung lungs lymph mandible maxilla mediastinal mediastinum mouth msk musculoskeletal neck
nose nodes orbit ovary palate pancreas parotid patella pelvic pelvis cavity penis pharynx pituitary pns
prostate radius rectum rib ribs sacrum scalp scapula sclera scrotum sella shoulder si sinus sinuses
skeleton skin skull spine spinal spleen sternum stomach submandibular tarsal temple teeth testis thigh
thoracic thorax throat thumb thymus thyroid tibia fibula tissue tlspine tmj toe toes tongue trachea
tspine ulna ureter urethra uterus vagina vascular vein vessel vessels vulva wholebody whole body wrist
cervical lumbar lumbosacral cranium cranial neuro cardiac cardiovascular respiratory other unknown
"""
_KNOWN_WORDS = frozenset(_KNOWN.split())
_WORD = re.compile(r"[^\W_]+")
_VERTEBRA = re.compile(r"[ctls]\d{1,2}")
_MAX_LENGTH = 64


def is_code(text: str) -> bool:
    """Whether all words of a modality, body part or view are known ones, in any case and order.

    Source: DICOM PS3.3 and PS3.16, defined terms.
    """
    if len(text) > _MAX_LENGTH:
        return False
    return all(word in _KNOWN_WORDS or _VERTEBRA.fullmatch(word) for word in _WORD.findall(text.lower()))

from __future__ import annotations

import csv
import re
import time
from collections import Counter
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radloop.data.privacy import scrub

# Identifiers stand in «marks»; the rest has to stay as it is.
REPORTS = """
Comparison: Chest radiograph from «March 3, 2019».
COMPARISON: «3/14/2019».
Compared to «03/14/19», the effusion is larger.
CT of the chest dated «2019-03-14» is available.
Date of exam: «14.03.2019»
Date of birth: «14.03.51»
DOB «3/4/1951», presenting with cough.
MRI of «14 Feb 2020» showed a 2.5 x 3.1 cm mass.
Exam «12-JAN-2018» reviewed.
The study of «January 5th, 2020» is used for comparison.
No change since «Dec. 24».
Prior exam «08/2017» from an outside institution.
Last seen in «October» with pneumonia.
Radiograph from «3/24» shows the same nodule.
Stable since «5/6».
Films of «4/5/09» and «4-6-09» compared.
COMPARISON: PA AND LATERAL CHEST, «NOVEMBER 12, 2015 AT 14:32».
Scan performed «2021/07/09 10:15:22» without contrast.
Exam: Monday, «June 1, 2015».
Follow-up recommended by «20200314».
Study from «1 September 2008» and «21 May 2008».
Admitted on «2/28», now with fever.
Findings were called at «3:45 PM» on «4/1/2020».
Results reported at «1545 hours».
Telephoned at «15:47» to the ward.
Tube placed «11:05 a.m.» today.
Paged at «09:12».
History: «93»-year-old woman with fall.
«101» year old man, hip pain.
«95»yo M with dyspnea.
Age: «92», sex F.
Elderly patient aged «90» with delirium.
«Ninety-three»-year-old female.
Findings discussed with Dr. «Miller» by telephone.
Findings were discussed with Dr. «Ana Lopez» at the time of dictation.
Dr. «O'Brien» was notified.
Dr «van der Berg» reviewed the images.
DR. «SMITH» WAS NOTIFIED.
FINDINGS DISCUSSED WITH DR «PATEL» AT THE TIME OF THE STUDY.
findings discussed with dr. «jones» by phone.
Reviewed with Prof. «Hans-Peter Müller».
Prof. Dr. med. «Ewald Hofmann» was consulted.
Mr. «John Q. Public» presents with chest pain.
Mrs. «García-Márquez» has a history of breast cancer.
Ms. «Lee» is a smoker.
Miss «Taylor» fell from a horse.
Drs. «Moodley and Shah» agreed.
Drs. «J. Moodley, Y. Shah» agreed.
Patient: «John Smith»
PATIENT: «SMITH, JOHN A»
Patient Name: «Maria de la Cruz»
Name: «Li, Wei»
Patient's name: «Aoife Ní»
Dictated by: «Robert T. Jones», MD
Dictated by «Sarah Connor», M.D.
Transcribed by: «Kim»
Electronically signed by «Robert T. Jones», MD
Electronically Signed by: «R. Jones»
ELECTRONICALLY SIGNED BY: «JANE ROE», M.D.
Signed: «Peter Pan»
Verified by: «Anna Schmidt»
Interpreted by «Thomas Mann» on «2/3/2011».
Referring physician: «House, Gregory»
Referring Physician: Dr. «Watson»
Ordering provider: «Meredith Grey»
Attending: «Derek Shepherd»
RESIDENT: «CRISTINA YANG»
Radiologist: «Wilhelm Röntgen»
Technologist: «B. Kent»
Primary care physician: «Marcus Welby»
PCP: «Welby»
cc: «Leonard McCoy»
Discussed with «Jane Miller», RN, at the time of the exam.
The results were communicated to «Beverly Crusher».
Spoke with nurse «Jackie» about the line.
Nurse «Ratched» was informed.
The images were reviewed by «Stephen Strange», MD.
Report of «Michaela Quinn» MD.
MRN: «1234567»
MRN «00-12-34-56» with cough.
MRN# «A123456»
Medical record number: «12345»
Med. rec. no. «987654»
Medical Record # «X99812»
Accession number: «CT-19-004532»
Accession: «12345678»
ACC# «8812345»
Acc No: «5512345»
Account number «AC99/1234»
Acct: «44556»
Patient ID: «P-00817»
Pt ID «40021»
SN: «PVX123456H»
Acc: «55-1234567»
Health plan beneficiary number «1EG4-TE5-MK73».
Policy number: «AB123456»
License number: «C1234567»
Licence no. «778812»
NPI «1932100001»
DEA # «BS1234563»
Pacemaker serial number «PJN601234H» seen.
Device ID: «DV-55812»
Case # «2019-1234»
Encounter number «778123».
Order number: «55512»
The patient «E01234567» was scanned twice.
See study «20031234567» for details.
SSN «123-45-6789»
Call «617-555-1234» with questions.
Phone: «(617) 555-1234»
Tel. «+49 30 1234567»
Pager «12345»
Paged Dr. «Grey» at pager #«4455».
Fax: «617.555.9876»
Reading room «555-1234».
Call ext. «5512» with questions.
Reached at «1-800-555-0199 x123».
E-mail «john.smith+rad@mail.hospital.org» for images.
Images at «https://pacs.hospital.org/viewer?id=12345».
See «www.radiology-images.com/study/1» for images.
Workstation «192.168.10.42» was used.
SOP instance «1.2.840.113619.2.55.3.604688119.971» is missing.
Lives at «221 Baker Street».
Address: «12 North Main St., Apt 4, Springfield, IL 62704»
Send to «P.O. Box 1234».
From «Boston, MA 02115».
ZIP code «02115-1234»
"""

# Every token has a look of an identifier and is none.
MEDICINE = """
T1-2 disc. L4/5 stenosis. C5-6 and L5-S1 are normal. T12-L1.
A 2.5 x 3.1 cm mass, 5-6 mm nodule, 1/2 of the disc, 2/3 of the images, 10/12 ribs, ribs 5/6.
Ribs 8-9-10, ribs 8-9-10, 8-9-10 mm.
C-arm images. ET tube 3 cm above the carina. Swan-Ganz catheter. Kerley B lines. Foley catheter.
Gleason 3/4, Gleason 3 + 4 = 7. BI-RADS 4. PI-RADS 3/5. Grade 2/4. Bosniak IIF. Garden type 3.
Hodgkin lymphoma, Crohn disease, Wilms tumor, Baker cyst, Chance fracture, Monteggia and Colles fracture.
Sincerely, Dr. was notified. The Dr. of the ward. Contact the patient: none available.
Mass at 12:00, at the 3:00 position and at 10:30, 5 cm from the nipple. Dilution 1:20. I:E ratio 1:2.
Compared with prior MR. Stable mass. History of MS. Patient is stable. No change on MR angiography.
A 45-year-old man, 89-year-old woman, 90 pack-years, 95 mm, 90% stenosis, 120/80 mmHg, aged 67.
In 2019 and since 1998. The 2017 guideline. From 2015 to 2019.
Patient: Female. Name: Not available. Referring physician: unknown. Signed: XXXX. MRN: XXXX.
Dr. XXXX. Dr. ___.
___ year old woman with ?effusion // ?pneumonia. Chest x-XXXX. XXXX-year-old XXXX with XXXX. Comparison: ___
Series 3, image 102/240. Series 4 image 12. Images 10/24 to 12/24. SUV max 12.3, -1000 HU, 300-1200 HU.
Tc-99m MDP, F-18 FDG, 5.4 mCi, 100 mL Omnipaque 350, 0.123456 mSv, 1.5 T, TE 80, TR 2000, b 1000.
This may 5 mm nodule represent a granuloma. It may be benign. The fracture may have healed. OCT 5 mm.
Discussed with the patient. Discussed with Orthopedics. Findings reported to Emergency Department.
Called to ICU.
DR chest 2 views. XR CHEST PA AND LATERAL. Right Lower Lobe PA view. AP Chest CT. PA and lateral.
CHEST CT WITHOUT CONTRAST. COMPARISON WITH MR OF THE BRAIN. NO PNEUMOTHORAX. STATUS POST CABG.
8 FRENCH PIGTAIL.
St. Jude valve. Port-A-Cath. Dobhoff tube. Hickman and Groshong catheters. PICC line. Harrington rods.
Name of the procedure: chest radiograph. Patient is in no distress. Physician assistant. Attending: none.
CD4 count 350, WBC 12.5, INR 1.2, ICD J18.9, CPT 71046, 14 G needle, 24 French. Order: chest. Case: cough.
"""


def marked(line: str) -> tuple[str, str, list[str]]:
    """A line without its marks, as it should come out, and what is in the marks."""
    return re.sub("[«»]", "", line), re.sub("«[^»]*»", "___", line), re.findall("«([^»]*)»", line)


@pytest.mark.parametrize("line", REPORTS.strip().splitlines())
def test_an_identifier_is_replaced_and_nothing_else(line: str) -> None:
    given, expected, identifiers = marked(line)
    text, found = scrub(given)
    assert text == expected
    assert sum(found.values()) == len(identifiers)


def test_identifiers_in_one_long_report_are_found_as_in_short_ones() -> None:
    given, expected, identifiers = marked(REPORTS.strip())
    assert len(identifiers) > 100
    text, found = scrub(given)
    assert text == expected
    assert sum(found.values()) == len(identifiers)


def test_a_name_goes_on_in_the_next_line_but_a_label_is_none() -> None:
    assert scrub("seen by Dr. Ana\n Lopez today")[0] == "seen by Dr. ___ today"
    assert scrub("by Dr.\nLopez.\nFindings")[0] == "by Dr.\n___.\nFindings"
    assert scrub("with Dr. Lopez\nHeart Size: normal")[0] == "with Dr. ___\nHeart Size: normal"
    assert scrub("Patient: Ann Lee\nSex: F")[0] == "Patient: ___\nSex: F"


@pytest.mark.parametrize("line", MEDICINE.strip().splitlines())
def test_medicine_is_left_alone(line: str) -> None:
    assert scrub(line) == (line, Counter())


FORMATS = """%Y-%m-%d|%m/%d/%Y|%d.%m.%Y|%m-%d-%Y|%m/%d/%y|%d %B %Y|%B %d, %Y|%b %d, %Y|%d %b %Y|%d-%b-%Y
|%b. %d %Y|%d-%b-%y|%B %Y|%Y%m%d|%Y/%m/%d|%d/%m/%Y|%B %d|%d.%m.%y|%m/%d/%Y %H:%M|%Y-%m-%dT%H:%M:%S
|%b %d %Y at %I:%M %p"""


@given(
    st.datetimes(datetime(1900, 1, 1), datetime(2099, 12, 31)),
    st.sampled_from(FORMATS.replace("\n", "").split("|")),
    st.sampled_from(
        ["Comparison: {}.", "CT from {} shows a mass.", "({})", "{}", "Chest radiograph, {}, 2 views"]
    ),
    st.sampled_from([str, str.upper]),
)
def test_any_date_in_any_usual_form_goes(
    day: datetime, form: str, frame: str, case: Callable[[str], str]
) -> None:
    text, found = scrub(frame.format(case(day.strftime(form))))
    assert text == frame.format("___")
    assert sum(found.values()) == 1


@given(
    st.from_regex(r"[2-9][0-9]{2}[2-9][0-9]{6}", fullmatch=True),
    st.sampled_from(
        ["({}) {}-{}", "{}-{}-{}", "{}.{}.{}", "+1 {} {} {}", "1-{}-{}-{}", "{} {} {}", "({}){}-{}"]
    ),
)
def test_any_telephone_number_goes(digits: str, form: str) -> None:
    number = form.format(digits[:3], digits[3:6], digits[6:])
    assert scrub(f"Call {number} for results.")[0] == "Call ___ for results."


@given(st.text())
def test_scrubbed_text_needs_no_more_scrubbing_and_keeps_its_kinds_countable(text: str) -> None:
    once, found = scrub(text)
    assert once.count("___") >= text.count("___")
    assert all(times > 0 for times in found.values())


@given(
    st.dates(date(1900, 1, 1), date(2099, 1, 1)), st.sampled_from(["In {}", "since {}.", "the {} guideline"])
)
def test_a_year_alone_stays(day: date, frame: str) -> None:
    assert scrub(frame.format(day.year)) == (frame.format(day.year), Counter())


HOSTILE = ["a", "Ab ", "1", "1-", "1.", "12 ", "12/", "Dr. ", "a.", "a@", " ", "\n", "van ", "12 Ab ", "MRN "]
HOSTILE += ["(123", "+1 1", "Dr. van de ", "http://", "www.", "12:", "A-", "patient name:", "Jan ", "Smith, "]
HOSTILE += ["é", "A. ", "X", "tel 1", "Jan 1 ", "Ann\n"]


@pytest.mark.parametrize("unit", HOSTILE)
def test_no_text_takes_more_than_linear_time(unit: str) -> None:
    def seconds(length: int) -> float:
        text = ("Dr. " + unit * length)[:length]
        start = time.process_time()
        scrub(text)
        return time.process_time() - start

    seconds(100)
    short, long = min(seconds(5_000) for _ in range(3)), seconds(50_000)
    assert long < 25 * short + 0.05  # linear: 10 times


def test_nearly_nothing_of_reports_without_identifiers_is_replaced(real_data: Callable[[str], Path]) -> None:
    with (real_data("iu_xray") / "kaggle_indiana" / "indiana_reports.csv").open() as file:
        reports = [
            "\n".join([row["indication"], row["findings"], row["impression"]]) for row in csv.DictReader(file)
        ]
    found = sum((scrub(report)[1] for report in reports[::3]), Counter())
    assert len(reports) > 3000
    assert sum(found.values()) <= 2
